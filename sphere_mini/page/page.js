/* The page around the model: what is shown, and what happens when something is pressed.

   `state` holds everything that is set, and the address holds it too. A change of the state starts
   the visible panel's function anew: a generator that draws the most important picture first and
   yields after each decode, so that the page answers in between. */
"use strict";

const $ = (id) => document.getElementById(id);

const settings = JSON.parse($("settings").textContent);
const tensors = readTensors($("tensors").textContent);
const model = makeModel(settings.config, tensors);
const { config } = model;
const SIZE = config.image_size; // pixels
const LENGTH = latentLength(config); // numbers of one latent
const NUM_REAL = settings.labels.length; // pictures whose points are in the page
const NEIGHBOURS = 5;
const MOST_STEPS = 24;
const MOST_BUTTONS = 20; // of classes; more make a list
const BUDGET = 12; // milliseconds of work between two frames
const isNamed = config.num_classes > 0 || settings.class_names.length > 1;
const KINDS = isNamed ? [...new Set(settings.labels)].sort((a, b) => a - b) : ["picture"];
const SHORT = shortNames(settings.class_names);

// ---------------------------------------------------------------- state and address

const PANELS = { explore, angle, loop, between, draw };
const NAMES = {
  explore: "Explore", angle: "The angle", loop: "The loop", between: "Between", draw: "Draw",
};

// A field of the state: its value at first, and what a text means; undefined is not understood.
function choice(...values) {
  return { first: values[0], read: (text) => values.find((value) => String(value) === text) };
}

function number(first, least, most) {
  const isIn = (value) => value >= least && value <= most;
  return { first, read: (text) => (text !== "" && isIn(Number(text)) ? Number(text) : undefined) };
}

function whole(first, least, most) {
  const { read } = number(first, least, most);
  return { first, read: (text) => (Number.isInteger(Number(text)) ? read(text) : undefined) };
}

// What the ends of a path may be, the default first; the default kinds are the two least alike.
const UNLIKE = unlikeKinds();

const FIELDS = {
  panel: choice(...Object.keys(PANELS)),
  seed: whole(1, 0, 2 ** 32 - 1),
  class: choice("none", ...Array(config.num_classes).keys()),
  anchors: choice("pictures", "random"),
  tiles: choice("real", "decoded"),
  longitude: number(20, -180, 180),
  latitude: number(15, -90, 90),
  picked: whole(-1, -1, NUM_REAL - 1), // the picture that was clicked on
  from: choice("picture", "random"),
  angle: whole(40, 0, 90),
  draw: whole(0, 0, 1e6), // how often fresh noise was asked for
  start: choice("random", "picture"),
  steps: whole(1, 1, MOST_STEPS),
  noise: choice("shared", "fresh"),
  schedule: choice("fixed", "decay"),
  guidance: number(1, 1, 3),
  one: choice(UNLIKE.one, "random", ...KINDS),
  two: choice(UNLIKE.two, "random", ...KINDS),
  other: whole(2, 0, 2 ** 32 - 1),
  way: whole(65, 0, 100), // halfway both paths show the same
  brush: choice("light", "dark"),
};

const state = Object.fromEntries(Object.entries(FIELDS).map(([name, { first }]) => [name, first]));

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, { first, read }] of Object.entries(FIELDS)) {
    state[name] = read(given.get(name) ?? "") ?? first;
  }
}

function writeAddress() {
  const changed = Object.entries(state).filter(([name, value]) => value !== FIELDS[name].first);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}

let addressTimer; // browsers refuse an address that changes with each movement of a pointer

function update(changes) {
  Object.assign(state, changes);
  clearTimeout(addressTimer);
  addressTimer = setTimeout(writeAddress, 200);
  show();
}

// Everything that follows from the state: the controls at once, the pictures as they are computed.
function show() {
  showControls();
  startWork(PANELS[state.panel]());
}

// ---------------------------------------------------------------- work in small pieces

let work = null; // the generator that runs
let frame = null;

function startWork(generator) {
  work = generator;
  frame ??= requestAnimationFrame(workOn);
}

function workOn() {
  frame = null;
  const end = performance.now() + BUDGET;
  do {
    if (work.next().done) {
      document.body.dataset.idle = "yes"; // for the tests
      return;
    }
  } while (performance.now() < end);
  frame = requestAnimationFrame(workOn);
}

// ---------------------------------------------------------------- controls

function showControls() {
  delete document.body.dataset.idle;
  for (const name of Object.keys(PANELS)) $(name).hidden = name !== state.panel;
  for (const button of $("tabs").children) {
    if (button.dataset.panel === state.panel) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  for (const input of document.querySelectorAll("[data-state]")) {
    const value = state[input.dataset.state];
    if (input.type === "radio") input.checked = input.value === String(value);
    else if (input !== document.activeElement || input.type === "range") input.value = value;
  }
}

// What an input sets; what it cannot mean, such as an empty seed, sets nothing.
function onInput({ target }) {
  const name = target.dataset.state;
  if (!name) return;
  const value = FIELDS[name].read(target.value);
  if (value !== undefined) update({ [name]: value });
}

function makeTabs() {
  for (const [panel, name] of Object.entries(NAMES)) {
    const button = document.createElement("button");
    button.textContent = name;
    button.dataset.panel = panel;
    button.addEventListener("click", () => update({ panel }));
    $("tabs").append(button);
  }
}

function className(label) {
  return config.class_names[label] ?? String(label);
}

// A button for each class, or a list where there are many; nothing for a model without classes.
function makeClasses() {
  const labels = ["none", ...Array(config.num_classes).keys()];
  if (labels.length === 1) {
    $("classes").remove();
    return;
  }
  const nameOf = (label) => (label === "none" ? "no class" : className(label));
  if (labels.length > MOST_BUTTONS) {
    const list = document.createElement("select");
    list.dataset.state = "class";
    list.append(...labels.map((label) => new Option(nameOf(label), label)));
    $("classes").append(list);
    return;
  }
  for (const label of labels) $("classes").append(makeChoice("class", label, nameOf(label)));
}

function makeChoice(name, value, text) {
  const label = document.createElement("label");
  label.className = "choice";
  const input = Object.assign(document.createElement("input"), { type: "radio", name, value });
  input.dataset.state = name;
  const span = document.createElement("span");
  span.textContent = text;
  label.append(input, span);
  return label;
}

// The label that encode and decode take.
function chosenLabel() {
  return state.class === "none" ? null : state.class;
}

// ---------------------------------------------------------------- pictures on the page

// x: (3, H, H) in [-1, 1]
function showPicture(canvas, x) {
  canvas.width = canvas.height = SIZE;
  const image = new ImageData(SIZE, SIZE);
  for (let k = 0; k < SIZE * SIZE; k++) {
    for (let c = 0; c < 3; c++) image.data[4 * k + c] = (x[c * SIZE * SIZE + k] + 1) * 127.5;
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function asCanvas(x) {
  return showPicture(document.createElement("canvas"), x);
}

// Mean difference of two pictures: 0 for none, 1 between black and white.
function difference(x, other) {
  return x.reduce((sum, value, k) => sum + Math.abs(value - other[k]), 0) / (2 * x.length);
}

// As many list items with a picture and words as needed; those that are there stay.
function fillStrip(strip, count) {
  while (strip.children.length > count) strip.lastChild.remove();
  while (strip.children.length < count) {
    const item = document.createElement("li");
    const canvas = document.createElement("canvas");
    canvas.className = "picture";
    item.append(canvas, document.createElement("span"));
    strip.append(item);
  }
  return [...strip.children].map((item) => ({ canvas: item.children[0], text: item.children[1] }));
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
const degrees = (angle) => `${angle.toFixed(0)}°`;

// ---------------------------------------------------------------- the real pictures

// Picture k (3, H, H) in [-1, 1]; the page holds bytes (n, 3, H, H).
function realPicture(k) {
  const numbers = 3 * SIZE * SIZE;
  const bytes = model.pictures.subarray(k * numbers, (k + 1) * numbers);
  return Float32Array.from(bytes, (value) => value / 127.5 - 1);
}

function realPoint(k) {
  return model.points.subarray(k * LENGTH, (k + 1) * LENGTH);
}

function kindName(kind) {
  return isNamed ? settings.class_names[kind] ?? String(kind) : "a picture";
}

function realName(k) {
  return isNamed ? kindName(settings.labels[k]) : `picture ${k + 1}`;
}

// A few letters for the kind of picture k, which fit beside a small picture; nothing without kinds.
function realLetters(k) {
  const label = settings.labels[k];
  return isNamed ? SHORT[label] ?? String(label) : "";
}

// The shortest beginnings of names by which all of them differ, or their numbers.
function shortNames(names) {
  const letters = names.map((name) => [...name.replace(/[^\p{L}\p{N}]/gu, "")]);
  for (const length of [1, 2, 3]) {
    const short = letters.map((name) => name.slice(0, length).join(""));
    if (new Set(short).size === names.length) return short;
  }
  return names.map((_, k) => String(k));
}

// The numbers of a kind's pictures, those first that differ the least from their mean: these are
// the clearest.
function clearest(kind) {
  const { labels } = settings;
  const members = [...labels.keys()].filter((k) => !isNamed || labels[k] === kind);
  const sum = members.map(realPicture).reduce((total, x) => add(total, x));
  const mean = sum.map((value) => value / members.length);
  const apart = labels.map((_, k) => difference(realPicture(k), mean));
  return members.sort((a, b) => apart[a] - apart[b]);
}

// The two kinds whose clearest pictures differ the most.
function unlikeKinds() {
  const pictures = KINDS.map((kind) => realPicture(clearest(kind)[0]));
  const pairs = KINDS.flatMap((one, i) => KINDS.map((two, j) =>
    ({ one, two, apart: difference(pictures[i], pictures[j]) })));
  return pairs.reduce((best, pair) => (pair.apart > best.apart ? pair : best));
}

// The numbers of the real pictures, the nearest to a point first, with their angles.
function nearestReal(v) {
  const all = Array.from({ length: NUM_REAL }, (_, k) => ({ k, angle: angleTo(v, realPoint(k)) }));
  return all.sort((a, b) => a.angle - b.angle);
}

// The angle between points of RMS 1, less exact for small ones than `angleBetween`, and quicker.
function angleTo(u, v) {
  const cosine = dot(u, 0, v, 0, u.length) / u.length;
  return (Math.acos(Math.min(1, Math.max(-1, cosine))) * 180) / Math.PI;
}

const realTiles = Array.from({ length: NUM_REAL }, (_, k) => asCanvas(realPicture(k)));

// ---------------------------------------------------------------- a globe in the latent sphere

// Three perpendicular points in the subspace of three points, the first of which is one of them.
function axesThrough([a, b, c]) {
  const first = spherify(a);
  const second = directionAcross([first], b);
  return [first, second, directionAcross([first, second], c)];
}

// The latent of a place on the globe: of RMS 1, since the axes are perpendicular.
function latentAt(axes, [x, y, z]) {
  return axes[0].map((value, k) => x * value + y * axes[1][k] + z * axes[2][k]);
}

// The place on the globe that is nearest to a latent, and the angle between them.
function nearestPlace(axes, v) {
  const shadow = axes.map((axis) => dot(axis, 0, v, 0, LENGTH) / LENGTH);
  const length = Math.min(1, Math.hypot(...shadow));
  return { where: unit(shadow), angle: (Math.acos(length) * 180) / Math.PI };
}

const ANCHOR_SIDE = 48; // pixels of the screen

// The real pictures where they are nearest to the globe; the farther away, the smaller.
function tilesOfReal(axes) {
  return realTiles.map((picture, k) => {
    const { where, angle } = nearestPlace(axes, realPoint(k));
    const side = 18 + 28 * Math.cos((angle * Math.PI) / 180);
    return { k, where, angle, picture, side, kind: realLetters(k) };
  });
}

// Let a globe be turned by dragging and by arrow keys; and let its point be moved, if it has one.
// globe: {canvas, view, draw()}; for a point: point(), its place, and movePoint(place); for clicks
// on its tiles: shown(), all of them, and pick(tile).
function makeTurnable(globe) {
  const { canvas } = globe;
  canvas.addEventListener("pointerdown", (event) => grab(globe, event));
  canvas.addEventListener("pointermove", (event) => drag(globe, event));
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => (globe.dragged = null));
  }
  canvas.addEventListener("click", (event) => {
    const { clientX, clientY } = globe.start ?? event;
    const moved = Math.hypot(event.clientX - clientX, event.clientY - clientY);
    if (globe.pick && moved < 4) globe.pick(tileUnder(globe, event));
  });
  canvas.addEventListener("dblclick", (event) => globe.movePoint?.(placeOf(globe, event)));
  canvas.addEventListener("keydown", (event) => pressOnGlobe(globe, event));
}

// Where a pointer is on the globe's disc: right and up, in -1 ... 1 within it.
function positionOn({ canvas }, event) {
  const box = canvas.getBoundingClientRect();
  const radius = globeRadius(box.width);
  return [(event.clientX - box.left - box.width / 2) / radius,
    (box.top + box.height / 2 - event.clientY) / radius];
}

// The uppermost tile under a pointer, if there is one.
function tileUnder(globe, event) {
  const [right, up] = positionOn(globe, event);
  const radius = globeRadius(globe.canvas.clientWidth);
  const isUnder = ({ at, side }) => at[2] > 0
    && Math.max(Math.abs(at[0] - right), Math.abs(at[1] - up)) * radius <= side / 2;
  return seenTiles(globe.shown(), globe.view).filter(isUnder).at(-1);
}

function placeOf(globe, event) {
  return placeUnder(...positionOn(globe, event), globe.view);
}

// A press near the point takes hold of it, elsewhere of the globe.
function grab(globe, event) {
  const [right, up] = positionOn(globe, event);
  const at = globe.point && seenFrom(globe.point(), globe.view);
  const isNear = at && at[2] >= 0 && Math.hypot(right - at[0], up - at[1]) < 0.2;
  globe.dragged = isNear ? "point" : "globe";
  globe.last = globe.start = event;
  globe.canvas.setPointerCapture(event.pointerId);
}

function drag(globe, event) {
  if (globe.dragged === "point") globe.movePoint(placeOf(globe, event));
  if (globe.dragged === "globe") {
    const { last } = globe;
    turn(globe, (last.clientX - event.clientX) / 3, (event.clientY - last.clientY) / 3);
  }
  globe.last = event;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const KEY_DEGREES = 4;

// The tile of a real picture whose place is the nearest to the point's.
function tileBesidePoint(globe) {
  const real = globe.shown().filter(({ k }) => k >= 0);
  const cosine = ({ where }) => dot3(where, globe.point());
  return real.sort((a, b) => cosine(b) - cosine(a))[0];
}

// An arrow moves the point, which first goes to the middle of the view; with Shift, or without a
// point, it turns the globe.
function pressOnGlobe(globe, event) {
  if (event.key === "Enter" && globe.pick) globe.pick(tileBesidePoint(globe));
  if (!ARROWS[event.key]) return;
  event.preventDefault();
  const [right, up] = ARROWS[event.key].map((one) => one * KEY_DEGREES);
  if (!globe.movePoint || event.shiftKey) {
    turn(globe, 2 * right, 2 * up);
    return;
  }
  globe.view = viewOf(globe.point());
  const sine = (angle) => Math.sin((angle * Math.PI) / 180);
  globe.movePoint(placeUnder(sine(right), sine(up), globe.view));
}

function turn(globe, right, up) {
  const { longitude, latitude } = globe.view;
  const height = Math.min(85, Math.max(-85, latitude + up));
  globe.view = { longitude: longitude + right, latitude: height };
  globe.draw();
}

// ---------------------------------------------------------------- 1 Explore

const NUM_DECODED = 60; // tiles over the whole globe
const exploreGlobe = {
  canvas: $("explore-globe"),
  view: { longitude: 30, latitude: 25 },
  point: () => place(state.longitude, state.latitude),
  movePoint: (where) => {
    const { longitude, latitude } = viewOf(where);
    const rounded = (angle) => Math.round(10 * angle) / 10; // for a short address
    update({ longitude: rounded(longitude), latitude: rounded(latitude) });
  },
  shown() {
    return [...this.tiles, ...this.anchors];
  },
  // A second click on the same picture, or one beside all of them, lets it go.
  pick: (tile) => update({ picked: tile?.k === state.picked ? -1 : tile?.k ?? -1 }),
  draw() {
    const isPicked = ({ k }) => k >= 0 && k === state.picked;
    const tiles = this.shown().map((tile) => ({ ...tile, isPicked: isPicked(tile) }));
    drawGlobe(this.canvas, this.view, tiles, this.point());
  },
};

// Three points that span the globe, [{v, k (of a real picture)}]; the seed chooses them.
function anchorsOfSeed() {
  if (state.anchors === "random" || NUM_REAL < 3) {
    return drawFromSeed(state.seed, config, 3).map((e) => ({ v: spherify(e), k: -1 }));
  }
  const uniform = uniformNumbers(state.seed);
  const drawn = Array.from({ length: NUM_REAL }, (_, k) => ({ k, value: uniform() }));
  const order = drawn.sort((a, b) => a.value - b.value).map(({ k }) => k);
  const labels = order.map((k) => settings.labels[k]);
  const first = order.filter((_, i) => labels.indexOf(labels[i]) === i); // of each class one
  return [...new Set([...first, ...order])].slice(0, 3).map((k) => ({ v: realPoint(k), k }));
}

// A new globe where anchors, seed, class or kind of tiles have changed.
function prepareGlobe() {
  const key = [state.anchors, state.seed, state.class, state.tiles].join();
  if (key === exploreGlobe.key) return;
  const points = anchorsOfSeed();
  const axes = axesThrough(points.map(({ v }) => v));
  const anchors = points.map(({ v, k }, i) => ({
    k,
    name: "ABC"[i] + (k >= 0 && isNamed ? `: ${realLetters(k)}` : ""),
    where: nearestPlace(axes, v).where,
    side: ANCHOR_SIDE,
    picture: asCanvas(decode(model, v, chosenLabel())),
  }));
  const real = tilesOfReal(axes);
  const tiles = state.tiles === "real" ? real : [];
  Object.assign(exploreGlobe, { key, axes, anchors, real, tiles });
}

function* explore() {
  prepareGlobe();
  const { axes, tiles, real } = exploreGlobe;
  exploreGlobe.draw();
  const v = latentAt(axes, exploreGlobe.point());
  showPicture($("explore-picture"), decode(model, v, chosenLabel()));
  yield;
  const nearest = nearestReal(v);
  const isPicked = state.picked >= 0;
  const large = isPicked ? nearest.find(({ k }) => k === state.picked) : nearest[0];
  showPicture($("explore-nearest"), realPicture(large.k));
  $("explore-text").textContent =
    `${isPicked ? "picked" : "nearest"}: ${realName(large.k)}, ${degrees(large.angle)} away`;
  showFive(nearest.slice(0, NEIGHBOURS));
  $("explore-note").textContent = exploreWords(real);
  $("explore-letters").textContent = letterWords();
  const places = spiral(NUM_DECODED);
  while (state.tiles === "decoded" && tiles.length < NUM_DECODED) {
    const where = places[tiles.length];
    const picture = asCanvas(decode(model, latentAt(axes, where), chosenLabel()));
    tiles.push({ where, picture, side: 40 });
    exploreGlobe.draw();
    yield;
  }
}

// The nearest pictures, and how many of them are of one kind.
function showFive(nearest) {
  for (const [i, { canvas, text }] of fillStrip($("explore-five"), nearest.length).entries()) {
    const { k, angle } = nearest[i];
    showPicture(canvas, realPicture(k));
    canvas.onclick = () => exploreGlobe.pick({ k });
    text.textContent = `${realName(k)}, ${degrees(angle)}`;
  }
  const [[name, count]] = counted(nearest.map(({ k }) => realName(k)));
  const kinds = count > 1 ? `${count} are of the same kind: ${name}` : "each is of another kind";
  $("explore-kinds").textContent =
    `The ${nearest.length} nearest of all ${NUM_REAL}${isNamed ? `; ${kinds}` : ""}`;
}

// [[name, how often it is there]], the most frequent first.
function counted(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function exploreWords(real) {
  const angles = real.map(({ angle }) => angle).sort((a, b) => a - b);
  const half = degrees(angles[angles.length >> 1]);
  const kind = state.tiles === "real"
    ? `Half of the small pictures lie more than ${half} off the globe (the smaller, the farther).`
    : "Each small picture is what the decoder draws at its place.";
  const all = LENGTH.toLocaleString("en");
  return `A place on the globe is only a shadow, 3 directions of ${all}: near on the globe need `
    + `not be near on the sphere. A, B and C (decoded) lie on it. ${kind} A click on a small `
    + "picture shows it large; a double click moves the point.";
}

// What the letters on the globe mean, where they are not the names themselves.
function letterWords() {
  const letters = new Map(settings.labels.map((_, k) => [realLetters(k), realName(k)]));
  const unlike = [...letters].filter(([short, name]) => isNamed && short !== name).sort();
  if (!unlike.length || unlike.length > MOST_BUTTONS) return "";
  return `Letters: ${unlike.map(([short, name]) => `${short} ${name}`).join(", ")}.`;
}

function realWord() {
  return settings.source ? "real picture" : "generated picture";
}

// ---------------------------------------------------------------- 2 The angle

const CURVE = [0, 20, 40, 50, 60, 65, 70, 75, 80, 83, 86, 90]; // degrees
let curve = { key: "", points: [], top: 0.4 }; // the top never sinks: curves can be compared

function startPoint() {
  if (state.from === "picture") return realPoint(state.seed % NUM_REAL);
  return spherify(drawFromSeed(state.seed, config, 1)[0]);
}

// Five noises: the same at each angle, so that the slider alone changes the pictures.
function neighbourNoises() {
  return drawFromSeed((state.seed * 1009 + state.draw * 9176 + 77) >>> 0, config, NEIGHBOURS);
}

// The old picture, in a frame, and the tilted ones.
function makeFigures() {
  for (let k = 0; k <= NEIGHBOURS; k++) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.className = "picture";
    figure.append(canvas, document.createElement("figcaption"));
    $("angle-pictures").append(figure);
  }
}

function* angle() {
  const figures = [...$("angle-pictures").children];
  const show = (k, x, text) => {
    showPicture(figures[k].children[0], x);
    figures[k].children[1].textContent = text;
  };
  $("angle-value").textContent = degrees(state.angle);
  const v = startPoint();
  const noises = neighbourNoises();
  const old = decode(model, v, chosenLabel());
  show(0, old, "the old picture");
  const own = state.from === "picture" ? state.seed % NUM_REAL : -1;
  const tilts = noises.map((e) => {
    const tilted = perturb(v, sigmaFromAngle(state.angle), e);
    const other = nearestReal(tilted).find(({ k }) => k !== own) ?? { k: own, angle: 180 };
    return { tilted, turned: angleBetween(v, tilted), other };
  });
  const five = tilts.map(({ turned }, k) =>
    ({ degrees: turned, radius: 0.85, name: k ? "" : "the five", colour: "blue", size: 6 }));
  const slider = { degrees: state.angle, radius: 1, name: "the slider", colour: "orange" };
  const mark = config.alpha_max_deg;
  drawPlane($("angle-dial"), ["the point", "noise"], [slider, ...five], { mark });
  $("angle-text").textContent = angleWords(tilts);
  let changed = 0; // mean difference to the old picture
  for (const [k, { tilted, turned, other }] of tilts.entries()) {
    const x = decode(model, tilted, chosenLabel());
    const nearest = turned < other.angle ? "the old" : realName(other.k);
    show(k + 1, x, `${degrees(turned)}, near ${nearest}`);
    changed += difference(x, old) / NEIGHBOURS;
    yield;
  }
  yield* angleCurve(v, old, noises, [state.angle, changed]);
}

function angleWords(tilts) {
  const away = tilts.reduce((sum, { turned }) => sum + turned, 0) / tilts.length;
  const cosine = Math.cos((away * Math.PI) / 180);
  const kept = cosine > 0.005 ? `cos ${degrees(away)} = ${percent(cosine)}` : "nothing";
  const most = degrees(config.alpha_max_deg);
  const isLost = ({ turned, other }) => turned >= other.angle;
  const others = counted(tilts.filter(isLost).map(({ other }) => realName(other.k)));
  const lost = tilts.filter(isLost).length;
  const old = `the old ${state.from === "picture" ? "picture" : "point"}`;
  const nearest = lost < tilts.length ? [`${old} (${tilts.length - lost} of 5)`] : [];
  nearest.push(...others.map(([name, count]) => `${name} (${count})`));
  let why = `Up to α_max = ${most} training asked for the old picture back.`;
  if (lost) why += " Where another is nearer, the point alone no longer says which is meant.";
  if (state.angle > config.alpha_max_deg) why += ` Beyond ${most} training seldom went.`;
  const sine = Math.sin((state.angle * Math.PI) / 180);
  const spread = sine * Math.sqrt((1 + sine * sine) / (2 * LENGTH)); // a standard deviation
  const missed = `${((spread * 180) / Math.PI).toFixed(1)}°`;
  const all = LENGTH.toLocaleString("en");
  return `The five points are turned by ${degrees(away)} on average and keep ${kept} of the old `
    + `one. They may miss the slider's angle by about ${missed}: in ${all} dimensions noise is `
    + "nearly, not exactly, perpendicular to a point. Nearest to them: "
    + `${nearest.join(", ")}. ${why}`;
}

// The five pictures' mean difference to the old one, at a dozen angles and `now`. What is known
// is kept until something else than the angle changes.
function* angleCurve(v, old, noises, now) {
  const key = [state.seed, state.class, state.from, state.draw].join();
  if (key !== curve.key) curve = { key, points: [], top: curve.top };
  showCurve(now);
  for (const alpha of CURVE.slice(curve.points.length)) {
    let changed = 0;
    for (const e of noises) {
      const x = decode(model, perturb(v, sigmaFromAngle(alpha), e), chosenLabel());
      changed += difference(x, old) / NEIGHBOURS;
      yield;
    }
    curve.points.push([alpha, changed]);
    showCurve(now);
  }
}

function showCurve(now) {
  const highest = Math.max(...curve.points.map(([, changed]) => changed), now[1]);
  curve.top = Math.max(curve.top, Math.ceil(highest * 10) / 10);
  drawPlot($("angle-plot"), curve.points, curve.top, config.alpha_max_deg, now);
}

// ---------------------------------------------------------------- 3 The loop

// The first draw of the seed is the start's noise, the others are the rounds'.
function loopNoises(rounds) {
  const [first, ...drawn] = drawFromSeed(state.seed, config, 2 + rounds);
  return [first, drawn.slice(0, rounds).map((e) => (state.noise === "shared" ? drawn[0] : e))];
}

let loopKept = { key: "", pictures: [] };

// The pictures of the loop, the first one included. Those that are known are not computed again;
// but with decay each angle depends on the number of rounds.
function* loopPictures() {
  const isDecay = state.schedule === "decay";
  const options = { guidance: state.guidance, decay: isDecay };
  const [noise, stepNoise] = loopNoises(state.steps - 1);
  const key = [state.seed, state.class, state.start, state.noise, state.guidance].join();
  if (isDecay || key !== loopKept.key) loopKept = { key, pictures: [firstPicture(noise)] };
  const { pictures } = loopKept;
  if (isDecay) loopKept = { key: "", pictures: [] };
  yield* pictures;
  const rest = stepNoise.slice(pictures.length - 1);
  for (const x of refine(model, pictures.at(-1), chosenLabel(), rest, options)) {
    pictures.push(x);
    yield x;
  }
}

function firstPicture(noise) {
  if (state.start === "picture") return realPicture(state.seed % NUM_REAL);
  const options = { guidance: state.guidance };
  return generate(model, chosenLabel(), noise, [], options).next().value;
}

function* loop() {
  const isOff = chosenLabel() === null;
  $("guidance-value").textContent = isOff ? "(choose a class first)" : state.guidance;
  document.querySelector("[data-state=guidance]").disabled = isOff;
  for (const id of ["once", "four"]) $(id).disabled = state.steps === MOST_STEPS;
  const items = fillStrip($("loop-strip"), state.steps);
  const tilts = loopTilts(state.steps - 1);
  let [start, last] = [null, null];
  let k = 0;
  for (const x of loopPictures()) {
    if (k === state.steps) break; // fewer are asked for than are known
    const { canvas, text } = items[k];
    showPicture(canvas, x);
    start ??= x;
    text.textContent = !k ? "start" : `round ${k}: ${degrees(tilts[k - 1])}\n`
      + `last ${percent(difference(x, last))}\nstart ${percent(difference(x, start))}`;
    [last, k] = [x, k + 1];
    yield;
  }
  $("loop-text").textContent = loopWords();
}

// The angles of the rounds, in degrees: `refine` tilts by as much.
function loopTilts(rounds) {
  return Array.from({ length: rounds }, (_, k) => {
    const r = state.schedule === "decay" ? 1 - (k + 1) / (rounds + 1) : 1;
    return (Math.atan(r * sigmaMax(config)) * 180) / Math.PI;
  });
}

function loopWords() {
  const most = degrees(config.alpha_max_deg);
  const angles = state.schedule === "decay"
    ? `With decay, round k of n tilts by less than α_max = ${most}: the tangent is multiplied by `
      + "1 − k/(n + 1), so a further round changes the earlier ones."
    : `Each round tilts by α_max = ${most}.`;
  const next = state.steps > 1
    ? "Below each picture: its tilt, and how much it differs from the last one and from the start."
    : "Press a button: each round adds a picture.";
  const isFull = state.steps === MOST_STEPS;
  return `${angles} ${next}${isFull ? ` This page takes ${MOST_STEPS} pictures at most.` : ""}`;
}

// ---------------------------------------------------------------- 4 Between

const PLACES = 9;

function lerp(u, v, t) {
  return u.map((value, k) => (1 - t) * value + t * v[k]);
}

// One end of the paths: the seed's random point, or one of the kind's pictures. With the `clear`
// seed it is the clearest.
function endOf(kind, seed, clear) {
  if (kind === "random") {
    return { v: spherify(drawFromSeed(seed, config, 1)[0]), name: `random ${seed}` };
  }
  const members = clearest(kind);
  const k = members[(seed - clear + members.length) % members.length];
  return { v: realPoint(k), name: realName(k) };
}

// The two lists of what the paths may lead from and to.
function makeEnds() {
  for (const id of ["one", "two"]) {
    const options = KINDS.map((kind) => new Option(kindName(kind), kind));
    $(id).append(...options, new Option("random point", "random"));
  }
}

function* between() {
  $("way-value").textContent = `${state.way}%`;
  const isOneKind = state.one === state.two;
  const ends = [endOf(state.one, state.seed, 1), endOf(state.two, state.other, isOneKind ? 1 : 2)];
  const [u, v] = ends.map((end) => end.v);
  const t = state.way / 100;
  const straight = lerp(u, v, t);
  showPicture($("slerp-picture"), decode(model, slerp(u, v, t), chosenLabel()));
  showPicture($("lerp-picture"), decode(model, spherify(straight), chosenLabel()));
  const whole = angleBetween(u, v);
  const walked = [t * whole, angleBetween(u, straight)];
  const length = Math.sqrt(dot(straight, 0, straight, 0, LENGTH) / LENGTH);
  drawPlane($("between-dial"), ends.map(({ name }) => name), [
    { degrees: walked[0], radius: 1, name: "slerp", colour: "blue" },
    { degrees: walked[1], radius: length, name: "lerp", colour: "orange" },
  ], { whole, chord: true });
  $("between-text").textContent =
    `${ends[0].name} and ${ends[1].name} are ${degrees(whole)} apart. Slerp has turned by `
    + `${degrees(walked[0])}, lerp by ${degrees(walked[1])}, at ${percent(length)} of the sphere's `
    + "radius.";
  yield;
  yield* fillPaths(u, v);
}

// Both paths in a few pictures, and where these differ the most.
function* fillPaths(u, v) {
  const key = [state.seed, state.other, state.one, state.two, state.class].join();
  if ($("slerp-strip").dataset.key === key) return;
  const strips = ["slerp-strip", "lerp-strip"].map((id) => fillStrip($(id), PLACES));
  let most = { apart: 0, at: 0 };
  for (let k = 0; k < PLACES; k++) {
    const t = k / (PLACES - 1);
    const pictures = [slerp(u, v, t), spherify(lerp(u, v, t))].map((point, i) => {
      const x = decode(model, point, chosenLabel());
      showPicture(strips[i][k].canvas, x);
      return x;
    });
    const apart = difference(...pictures);
    if (apart > most.apart) most = { apart, at: t };
    yield;
  }
  $("between-most").textContent =
    `The two paths differ the most at ${percent(most.at)} of the way: by ${percent(most.apart)} `
    + "(black against white would be 100%).";
  $("slerp-strip").dataset.key = key;
}

// ---------------------------------------------------------------- 5 Draw

const sheet = { // the drawing, and where keys and the pointer are on it
  x: new Float32Array(3 * SIZE * SIZE).fill(-1), // (3, H, H)
  cursor: [SIZE >> 1, SIZE >> 1], // column and row
  last: null,
};
const landGlobe = {
  canvas: $("draw-globe"),
  view: { longitude: 20, latitude: 20 },
  tiles: [],
  draw() {
    drawGlobe(this.canvas, this.view, this.tiles, null);
  },
};
const NUM_TILTS = 3;
const SAME = 1; // degrees, within which a point is that of the same picture

// Paint a soft round spot at column and row, in pixels.
function paint(column, row) {
  const radius = Math.max(0.45, SIZE / 20);
  const value = state.brush === "light" ? 1 : -1;
  for (let k = 0; k < SIZE * SIZE; k++) {
    const distance = Math.hypot((k % SIZE) + 0.5 - column, Math.floor(k / SIZE) + 0.5 - row);
    const share = Math.min(1, Math.max(0, radius + 0.5 - distance));
    for (let c = 0; c < 3; c++) {
      const i = c * SIZE * SIZE + k;
      const painted = sheet.x[i] + share * (value - sheet.x[i]);
      sheet.x[i] = value > 0 ? Math.max(sheet.x[i], painted) : Math.min(sheet.x[i], painted);
    }
  }
}

function paintLine([column0, row0], [column1, row1]) {
  const count = Math.ceil(2 * Math.hypot(column1 - column0, row1 - row0)) + 1;
  for (let k = 0; k <= count; k++) {
    paint(column0 + (k / count) * (column1 - column0), row0 + (k / count) * (row1 - row0));
  }
}

// A triangle, which no data set here contains.
function paintTriangle() {
  const corners = [[0.5, 0.2], [0.82, 0.78], [0.18, 0.78]].map((c) => c.map((one) => one * SIZE));
  corners.forEach((corner, k) => paintLine(corner, corners[(k + 1) % 3]));
}

function showSheet() {
  const canvas = $("draw-sheet");
  const { context, width } = cleared(canvas);
  context.imageSmoothingEnabled = false;
  context.drawImage(asCanvas(sheet.x), 0, 0, width, width);
  if (document.activeElement !== canvas) return;
  const pixel = width / SIZE;
  context.lineWidth = 3;
  context.strokeStyle = colour("orange");
  context.strokeRect(sheet.cursor[0] * pixel, sheet.cursor[1] * pixel, pixel, pixel);
}

function makeSheet() {
  const canvas = $("draw-sheet");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    sheet.last = pixelUnder(event);
    paint(...sheet.last);
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!sheet.last) return;
    paintLine(sheet.last, pixelUnder(event));
    sheet.last = pixelUnder(event);
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => (sheet.last = null));
  }
  for (const change of ["focus", "blur"]) canvas.addEventListener(change, showSheet);
  canvas.addEventListener("keydown", pressOnSheet);
}

// Column and row of a pointer, in the picture's pixels.
function pixelUnder(event) {
  const box = $("draw-sheet").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top].map((one) => one * SIZE / box.width);
}

// Arrows move the cursor, and Space paints under it.
function pressOnSheet(event) {
  const isSpace = event.key === " ";
  if (!isSpace && !ARROWS[event.key]) return;
  event.preventDefault();
  if (isSpace) {
    paint(...sheet.cursor.map((one) => one + 0.5));
  } else {
    const [right, up] = ARROWS[event.key];
    const inside = (one) => Math.min(SIZE - 1, Math.max(0, one));
    sheet.cursor = [inside(sheet.cursor[0] + right), inside(sheet.cursor[1] - up)];
  }
  show();
}

// A picture file, its centre square in the model's size.
async function openFile(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file);
    const side = Math.min(bitmap.width, bitmap.height);
    const canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
    context.drawImage(bitmap, left, top, side, side, 0, 0, SIZE, SIZE);
    const { data } = context.getImageData(0, 0, SIZE, SIZE);
    sheet.x = Float32Array.from({ length: 3 * SIZE * SIZE }, (_, i) =>
      data[4 * (i % (SIZE * SIZE)) + Math.floor(i / (SIZE * SIZE))] / 127.5 - 1);
    complain("");
  } catch {
    complain(`${file.name} cannot be read as a picture.`);
  }
  show();
}

function complain(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function* draw() {
  $("tilt-value").textContent = degrees(state.angle);
  showSheet();
  const { x } = sheet;
  showPicture($("draw-own"), x);
  const v = spherify(encode(model, x, chosenLabel()));
  const again = decode(model, v, chosenLabel());
  showPicture($("draw-again"), again);
  $("draw-text").textContent = `Mean difference: ${percent(difference(x, again))}.`;
  yield;
  const tilts = fillStrip($("draw-tilts"), NUM_TILTS);
  for (const [k, e] of neighbourNoises().slice(0, NUM_TILTS).entries()) {
    const tilted = perturb(v, sigmaFromAngle(state.angle), e);
    showPicture(tilts[k].canvas, decode(model, tilted, chosenLabel()));
    yield;
  }
  land(chosenLabel() === null ? v : spherify(encode(model, x)));
}

// The globe through the picture's point, encoded without a class, and the two nearest real ones.
function land(v) {
  const nearest = nearestReal(v);
  const others = nearest.filter(({ angle }) => angle > SAME); // not the picture itself
  const [a, b = a] = [...others, ...nearest];
  const axes = axesThrough([v, realPoint(a.k), realPoint(b.k)]);
  const anchors = [
    { picture: asCanvas(sheet.x), v, name: "yours" },
    { picture: realTiles[a.k], v: realPoint(a.k), name: realName(a.k) },
    { picture: realTiles[b.k], v: realPoint(b.k), name: realName(b.k) },
  ].map((one) => ({ ...one, side: ANCHOR_SIDE, where: nearestPlace(axes, one.v).where }));
  landGlobe.tiles = [...tilesOfReal(axes), ...anchors];
  landGlobe.draw();
  const far = nearest[NUM_REAL >> 1].angle;
  $("draw-note").textContent =
    `Nearest ${realWord()}s: ${realName(a.k)}, ${degrees(a.angle)} away, and ${realName(b.k)}, `
    + `${degrees(b.angle)}. Half of all ${NUM_REAL} are more than ${degrees(far)} away.`;
}

// ---------------------------------------------------------------- about, and the start

function showAbout() {
  $("title").textContent = `${settings.name} on a sphere`;
  document.body.classList.toggle("tiny", SIZE < 16);
  document.title = `${settings.name}: a sphere to play with`;
  const numbers = { ".alpha-max": degrees(config.alpha_max_deg), ".num-real": NUM_REAL,
    ".dimensions": LENGTH.toLocaleString("en") };
  for (const [name, value] of Object.entries(numbers)) {
    for (const word of document.querySelectorAll(name)) word.textContent = value;
  }
  if (!settings.source) {
    for (const word of document.querySelectorAll(".real")) word.textContent = "generated";
  }
  const isWeight = ([name]) => name !== "points" && name !== "pictures";
  const weights = Object.entries(tensors).filter(isWeight);
  const count = weights.reduce((sum, [, numbers]) => sum + numbers.length, 0);
  $("about-model").textContent =
    `The model ${settings.name}, ${count.toLocaleString("en")} weights in half precision (hash `
    + `${settings.hash}), runs in this page; nothing is fetched and nothing is sent. `
    + (settings.source
      ? `The ${NUM_REAL} real pictures are from the data set ${settings.source}.`
      : `Its data set was not at hand: the ${NUM_REAL} pictures are its own samples.`)
    + (SIZE < 16 ? " Pictures of so few pixels are shown smooth." : "");
}

// Medians of nine, in milliseconds.
function measure() {
  const v = realPoint(0);
  const x = realPicture(0);
  const median = (run) => Array.from({ length: 9 }, () => {
    const before = performance.now();
    run();
    return performance.now() - before;
  }).sort((a, b) => a - b)[4].toFixed(1);
  const times = [
    median(() => decode(model, v)),
    median(() => encode(model, x)),
    median(() => [...refine(model, x, null, [v])]),
  ];
  $("about-speed").textContent =
    `On this device a decode takes ${times[0]} ms, an encode ${times[1]} ms, a round of the loop `
    + `${times[2]} ms.`;
}

function addSteps(count) {
  update({ steps: Math.min(MOST_STEPS, state.steps + count) });
}

function makeButtons() {
  const click = (id, action) => $(id).addEventListener("click", action);
  click("next-seed", () => update({ seed: (state.seed + 1) % 2 ** 32 }));
  click("fresh", () => update({ draw: state.draw + 1 }));
  click("once", () => addSteps(1));
  click("four", () => addSteps(4));
  click("again", () => update({ steps: 1 }));
  click("clear", () => (sheet.x.fill(-1), show()));
  click("invert", () => ((sheet.x = sheet.x.map((value) => -value)), show()));
  let taken = 0; // each press takes another picture
  click("take-real", () => ((sheet.x = realPicture((state.seed + taken++) % NUM_REAL)), show()));
  $("file").addEventListener("change", ({ target }) => openFile(target.files[0]));
  $("about").addEventListener("toggle", () => $("about").open && measure());
}

function makeDropTarget() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    update({ panel: "draw" });
    openFile(event.dataTransfer.files[0]);
  });
}

function main() {
  makeTabs();
  makeClasses();
  makeEnds();
  makeFigures();
  makeButtons();
  makeSheet();
  makeDropTarget();
  paintTriangle();
  makeTurnable(exploreGlobe);
  makeTurnable(landGlobe);
  const share = config.alpha_max_deg / 90; // of the way; the knob stays 8 pixels off the ends
  for (const mark of document.querySelectorAll(".mark")) {
    mark.textContent = `α_max ${config.alpha_max_deg}° ▲`;
    mark.style.left = `calc(${share} * (100% - 16px) + 8px)`;
  }
  document.addEventListener("input", onInput);
  addEventListener("hashchange", () => (readAddress(), show()));
  addEventListener("resize", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  showAbout();
  document.querySelector("main").hidden = false;
  readAddress();
  show();
}

main();
