/* Drawings on canvases: the globe, the plane of a point and its noise, and a curve.

   The globe shows three directions of the latent sphere. A place on it is [x, y, z] of length 1;
   a view is {longitude, latitude} in degrees, the place that the viewer looks at. */
"use strict";

const FONT_SIZE = "18px";

// ---------------------------------------------------------------- the globe

// Twin: place in notebooks/globe.py
function place(longitude, latitude) {
  const [a, b] = [(longitude * Math.PI) / 180, (latitude * Math.PI) / 180];
  return [Math.cos(b) * Math.cos(a), Math.cos(b) * Math.sin(a), Math.sin(b)];
}

// Twin: view_of in notebooks/globe.py
function viewOf([x, y, z]) {
  const degrees = (angle) => (angle * 180) / Math.PI;
  return { longitude: degrees(Math.atan2(y, x)), latitude: degrees(Math.asin(z)) };
}

// The directions that the viewer sees as right, up and towards: three rows.
// Twin: axes_of in notebooks/globe.py
function axesOf({ longitude, latitude }) {
  return [place(longitude + 90, 0), place(longitude, latitude + 90), place(longitude, latitude)];
}

function dot3(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// A vector of three numbers at length 1.
function unit(a) {
  const length = Math.sqrt(dot3(a, a));
  return a.map((value) => value / length);
}

// Where the viewer sees a place: right and up in -1 ... 1, and towards, which is negative behind.
function seenFrom(a, view) {
  return axesOf(view).map((axis) => dot3(a, axis));
}

// The place under a pointer, at right and up; beyond the globe's edge it is the edge's.
function placeUnder(right, up, view) {
  const length = Math.hypot(right, up);
  if (length > 1) [right, up] = [right / length, up / length];
  const towards = Math.sqrt(Math.max(0, 1 - right * right - up * up));
  const [r, u, t] = axesOf(view);
  return unit(r.map((value, k) => right * value + up * u[k] + towards * t[k]));
}

// Places spread evenly over the globe: a spiral whose turns are the golden angle.
function spiral(count) {
  const golden = 180 * (3 - Math.sqrt(5));
  return Array.from({ length: count }, (_, k) => {
    const height = 1 - (2 * k + 1) / count;
    return place(k * golden, (Math.asin(height) * 180) / Math.PI);
  });
}

// ---------------------------------------------------------------- canvases

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
}

// A canvas cleared at the resolution of the screen: {context, width, height} in CSS pixels.
function cleared(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = `${FONT_SIZE} ${getComputedStyle(document.body).fontFamily}`;
  return { context, width, height };
}

function line(context, points, stroke, lineWidth = 1) {
  context.beginPath();
  points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.strokeStyle = stroke;
  context.lineWidth = lineWidth;
  context.stroke();
}

function disc(context, [x, y], radius, fill, stroke) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  if (fill) {
    context.fillStyle = fill;
    context.fill();
  }
  if (stroke) {
    context.lineWidth = 3;
    context.strokeStyle = stroke;
    context.stroke();
  }
}

function words(context, text, [x, y], fill, align = "center") {
  context.textAlign = align;
  context.textBaseline = "middle";
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = colour("paper"); // a halo, so that letters are read on any ground
  context.strokeText(text, x, y);
  context.fillStyle = fill;
  context.fillText(text, x, y);
}

// Of a globe on a canvas of this width; around it there is room for tiles and names at its edge.
// While a window opens, its width may be 0.
function globeRadius(width) {
  return Math.max(1, width / 2 - 46);
}

// Tiles with the place where the viewer sees them (`at`), in the order in which they are drawn:
// those with a name last.
function seenTiles(tiles, view) {
  const seen = tiles.map((tile) => ({ ...tile, at: seenFrom(tile.where, view) }));
  return seen.sort((a, b) => Boolean(a.name) - Boolean(b.name) || a.at[2] - b.at[2]);
}

// The globe. tiles: [{where (a place), picture (a canvas), side, name, kind (a few letters),
// isPicked}], of which those in front are drawn; point: a place, or null.
function drawGlobe(canvas, view, tiles, point) {
  const { context, width } = cleared(canvas);
  const radius = globeRadius(width);
  const onScreen = ([right, up]) => [width / 2 + radius * right, width / 2 - radius * up];
  disc(context, [width / 2, width / 2], radius, colour("soft"), colour("line"));
  for (const curve of parallelsAndMeridians()) drawCurve(context, curve, view, onScreen);
  const chips = { name: ["blue", "on-blue", FONT_SIZE], kind: ["paper", "ink", "14px"] };
  for (const [key, [ground, ink, size]] of Object.entries(chips)) {
    chips[key] = [colour(ground), colour(ink), context.font.replace(FONT_SIZE, size)];
  }
  for (const tile of seenTiles(tiles, view)) {
    if (tile.at[2] > 0) drawTile(context, tile, onScreen(tile.at), chips);
  }
  if (!point) return;
  const at = seenFrom(point, view);
  const isInFront = at[2] >= 0;
  disc(context, onScreen(at), 13, isInFront ? colour("orange") : null, colour("paper"));
  disc(context, onScreen(at), 13, null, colour(isInFront ? "ink" : "orange"));
}

function drawTile(context, { picture, side, name, kind, isPicked }, [x, y], chips) {
  const [left, top] = [x - side / 2, y - side / 2];
  context.drawImage(picture, left, top, side, side);
  context.lineWidth = name || isPicked ? 4 : 1;
  context.strokeStyle = colour(isPicked ? "orange" : name ? "blue" : "line");
  context.strokeRect(left, top, side, side);
  if (name) drawChip(context, name, [x, top - 9], chips.name);
  else if (kind) drawChip(context, kind, [left + side, top + side], chips.kind);
}

// Letters on a ground of their own, so that they are read over pictures.
function drawChip(context, text, [x, y], [ground, ink, font]) {
  context.font = font;
  const [width, height] = [context.measureText(text).width + 6, parseFloat(font) + 2];
  context.fillStyle = ground;
  context.fillRect(x - width / 2, y - height / 2, width, height);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = ink;
  context.fillText(text, x, y + 1);
}

// Lists of places, 30 degrees apart.
function parallelsAndMeridians() {
  const turn = Array.from({ length: 73 }, (_, k) => 5 * k - 180);
  const parallels = [-60, -30, 0, 30, 60].map((height) => turn.map((t) => place(t, height)));
  const meridians = turn.filter((t) => t % 30 === 0).map((t) => turn.map((s) => place(t, s / 2)));
  return [...parallels, ...meridians];
}

// The part of a curve that faces the viewer.
function drawCurve(context, places, view, onScreen) {
  let part = [];
  for (const at of [...places.map((a) => seenFrom(a, view)), [0, 0, -1]]) {
    if (at[2] > 0) part.push(onScreen(at));
    else if (part.length) {
      line(context, part, colour("line"), 0.6);
      part = [];
    }
  }
}

// ---------------------------------------------------------------- the plane of two points

// The arc of `whole` degrees from one end, at the right, to the other; and points in this plane:
// [{degrees, radius (1 on the circle), colour, name (or none), size}], whose names make a legend;
// large ones have a spoke.
function drawPlane(canvas, ends, points, { whole = 90, chord = false, mark = null } = {}) {
  const { context, width, height } = cleared(canvas);
  const leftward = Math.max(0, -Math.cos((whole * Math.PI) / 180));
  const radius = Math.max(1, Math.min((width - 90) / (1 + leftward), height - 66));
  const onScreen = (degrees, r = 1) => {
    const angle = (degrees * Math.PI) / 180;
    return [40 + radius * (leftward + r * Math.cos(angle)), height - 32
      - radius * r * Math.sin(angle)];
  };
  const farthest = Math.max(whole, ...points.map((point) => point.degrees));
  const arc = Array.from({ length: 91 }, (_, k) => onScreen((k / 90) * farthest));
  line(context, [onScreen(whole), onScreen(0, 0), onScreen(0)], colour("line"));
  line(context, arc, colour("ink"), 2);
  if (chord) line(context, [onScreen(0), onScreen(whole)], colour("ink"), 2);
  const inside = (text, x) => {
    const half = context.measureText(text).width / 2 + 3;
    return Math.max(half, Math.min(width - half, x));
  };
  if (mark !== null) {
    line(context, [onScreen(0, 0), onScreen(mark, 1.06)], colour("ink"), 2);
    const [x, y] = onScreen(mark, 1.06);
    words(context, "α_max", [x + 6, y - 8], colour("ink"), "left");
  }
  const [first, other] = [onScreen(0), onScreen(whole)];
  words(context, ends[0], [inside(ends[0], first[0]), first[1] + 20], colour("ink"));
  words(context, ends[1], [inside(ends[1], other[0]), other[1] - 18], colour("ink"));
  points.forEach(({ degrees, radius: r, colour: name, size = 9 }) => {
    if (size > 8) line(context, [onScreen(0, 0), onScreen(degrees, r)], colour(name), 3);
    disc(context, onScreen(degrees, r), size, colour(name), colour("paper"));
  });
  points.filter(({ name }) => name).forEach(({ name, colour: ground, size = 9 }, k) => {
    disc(context, [width - 10, 14 + 24 * k], size, colour(ground), colour("paper"));
    words(context, name, [width - 24, 14 + 24 * k], colour(ground), "right");
  });
}

// ---------------------------------------------------------------- a curve

// Values in [0, top] against angles of 0 to 90 degrees; a dashed line at `mark`, a dot at `now`.
function drawPlot(canvas, points, top, mark, now) {
  const { context, width, height } = cleared(canvas);
  const [left, right, below, above] = [52, width - 16, height - 52, 14];
  const onScreen = ([degrees, value]) => [
    left + (degrees / 90) * (right - left), below - (value / top) * (below - above)];
  line(context, [[left, above], [left, below], [right, below]], colour("ink"), 1);
  for (const degrees of [0, 30, 60, 90]) {
    words(context, `${degrees}°`, [onScreen([degrees, 0])[0], below + 16], colour("ink"));
  }
  words(context, "angle", [(left + right) / 2, below + 38], colour("ink"));
  words(context, `${Math.round(top * 100)}%`, [left - 6, above + 6], colour("ink"), "right");
  words(context, "0%", [left - 6, below], colour("ink"), "right");
  context.setLineDash([6, 6]);
  line(context, [onScreen([mark, 0]), onScreen([mark, top])], colour("orange"), 2);
  context.setLineDash([]);
  line(context, points.map(onScreen), colour("blue"), 3);
  for (const point of points) disc(context, onScreen(point), 4, colour("blue"));
  if (now) disc(context, onScreen(now), 8, colour("orange"), colour("paper"));
}
