/* The model in plain JavaScript: what sphere.py, vit.py, model.py and sampling.py compute.

   One image at a time, so there is no batch dimension. Every tensor is a flat Float32Array in
   row-major order, and comments give its shape: N tokens, D latent channels, C x H x W pixels.
   `p` holds the weights of one layer, under the names of the checkpoint. "Twin" names the function
   or class of the package that computes the same; a test compares their results. */
"use strict";

// ---------------------------------------------------------------- geometry

const EPS = 1e-6; // inside the root: a latent of all zeros maps to zeros, not to NaN

// The sum of a[i + k]·b[j + k] over k < n. One sum alone would wait for each addition; four do not.
function dot(a, i, b, j, n) {
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  let k = 0;
  for (; k + 3 < n; k += 4) {
    s0 += a[i + k] * b[j + k];
    s1 += a[i + k + 1] * b[j + k + 1];
    s2 += a[i + k + 2] * b[j + k + 2];
    s3 += a[i + k + 3] * b[j + k + 3];
  }
  for (; k < n; k++) s0 += a[i + k] * b[j + k];
  return s0 + s1 + s2 + s3;
}

// Project a raw latent onto the sphere: f(z) = z / sqrt(mean(z²) + 1e-6), so that its RMS is 1.
// Twin: spherify in sphere.py
function spherify(z) {
  const meanSquare = dot(z, 0, z, 0, z.length) / z.length;
  const factor = 1 / Math.sqrt(meanSquare + EPS);
  return z.map((value) => value * factor);
}

// Tilt a point by noise and return to the sphere: f(v + sigma·e). sigma = 0 returns v itself.
// Twin: perturb in sphere.py
function perturb(v, sigma, e) {
  if (sigma === 0) return v;
  return spherify(v.map((value, k) => value + sigma * e[k]));
}

// Noise strength that tilts a latent by alphaDeg degrees: sigma = tan(alpha).
// Twin: sigma_from_angle in sphere.py
function sigmaFromAngle(alphaDeg) {
  return Math.tan((alphaDeg * Math.PI) / 180);
}

// Angle in degrees between two latents, each one long vector.
// Twin: angle_between in sphere.py
function angleBetween(u, v) {
  u = spherify(u);
  v = spherify(v);
  const apart = u.map((value, k) => value - v[k]);
  const together = u.map((value, k) => value + v[k]);
  return (2 * Math.atan2(norm(apart), norm(together)) * 180) / Math.PI;
}

function norm(x) {
  return Math.sqrt(dot(x, 0, x, 0, x.length));
}

// The point a fraction t of the way along the great circle from u to v, two points on the sphere.
// The same as slerp in sphere.py, by the direction across u: (v - cos Ω·u) / sin Ω.
function slerp(u, v, t) {
  const turn = (t * angleBetween(u, v) * Math.PI) / 180;
  const across = directionAcross([u], v);
  return u.map((value, k) => Math.cos(turn) * value + Math.sin(turn) * across[k]);
}

// The part of v that is perpendicular to each of `axes`, which are so to each other; of RMS 1.
function directionAcross(axes, v) {
  let across = v;
  for (const axis of axes) {
    const share = dot(across, 0, axis, 0, v.length) / dot(axis, 0, axis, 0, v.length);
    across = across.map((value, k) => value - share * axis[k]);
  }
  return spherify(across);
}

// ---------------------------------------------------------------- random numbers

// A source of uniform numbers in [0, 1): the generator mulberry32, 32 bits of state. Its numbers
// are not those of PyTorch: a seed means one picture here and another one in Python.
function uniformNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Normal numbers by Box and Muller: two uniform ones give a length and a direction.
function randn(count, uniform) {
  const e = new Float32Array(count);
  for (let k = 0; k < count; k += 2) {
    const length = Math.sqrt(-2 * Math.log(1 - uniform())); // 1 - u is never 0
    const direction = 2 * Math.PI * uniform();
    e[k] = length * Math.cos(direction);
    if (k + 1 < count) e[k + 1] = length * Math.sin(direction);
  }
  return e;
}

// `numDraws` noises (N·D each) of a seed. Asking for more leaves the earlier ones unchanged.
// Twin: draw_from_seeds in sampling.py
function drawFromSeed(seed, config, numDraws) {
  const uniform = uniformNumbers(seed);
  return Array.from({ length: numDraws }, () => randn(latentLength(config), uniform));
}

// ---------------------------------------------------------------- layers

const NORM_EPS = 1e-6;
const BASE = 10000; // of the frequencies of rotary positions

function silu(x) {
  return x.map((value) => value / (1 + Math.exp(-value)));
}

function add(x, y, factor = 1) {
  return x.map((value, k) => value + factor * y[k]);
}

// x (N, in) → (N, out): an output is the dot product of a token with a row of the weight (out, in).
// Four tokens share each weight that is read, which takes half the time. After the last token come
// copies of it, whose outputs lie beyond the array's end and are not written.
function linear(x, { weight, bias }, numOut = bias.length) {
  const numIn = weight.length / numOut;
  const numTokens = x.length / numIn;
  const place = (token) => Math.min(token, numTokens - 1) * numIn;
  const out = new Float32Array(numTokens * numOut);
  for (let token = 0; token < numTokens; token += 4) {
    const a = place(token), b = place(token + 1), c = place(token + 2), d = place(token + 3);
    for (let o = 0; o < numOut; o++) {
      let sumA = bias ? bias[o] : 0, sumB = sumA, sumC = sumA, sumD = sumA;
      for (let k = 0; k < numIn; k++) {
        const w = weight[o * numIn + k];
        sumA += w * x[a + k];
        sumB += w * x[b + k];
        sumC += w * x[c + k];
        sumD += w * x[d + k];
      }
      const i = token * numOut + o;
      out[i] = sumA;
      out[i + numOut] = sumB;
      out[i + 2 * numOut] = sumC;
      out[i + 3 * numOut] = sumD;
    }
  }
  return out;
}

// Each token of x (N, width) divided by its RMS, times a learned scale (width).
// Twin: RMSNorm in vit.py
function rmsNorm(x, { weight }) {
  const width = weight.length;
  const out = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += width) {
    const factor = 1 / Math.sqrt(dot(x, i, x, i, width) / width + NORM_EPS);
    for (let k = 0; k < width; k++) out[i + k] = x[i + k] * factor * weight[k];
  }
  return out;
}

// (rows, columns) → (columns, rows)
function transpose(x, rows) {
  const columns = x.length / rows;
  const out = new Float32Array(x.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[c * rows + r] = x[r * columns + c];
  }
  return out;
}

// Angles (N, headDim / 2) by which pairs of channels turn: the first half by the token's row, the
// second half by its column.
// Twin: rope_table in vit.py (which stores their cosines and sines)
function ropeAngles(headDim, side) {
  const n = headDim / 4;
  const angles = new Float64Array(side * side * 2 * n);
  for (let token = 0; token < side * side; token++) {
    const row = Math.floor(token / side);
    const column = token % side;
    for (let k = 0; k < n; k++) {
      const frequency = BASE ** (-k / n);
      angles[token * 2 * n + k] = row * frequency;
      angles[token * 2 * n + n + k] = column * frequency;
    }
  }
  return angles;
}

// Rotate, in place, the channel pairs of one head, at `offset` in each token of x (N, stride).
// Twin: apply_rope in vit.py
function applyRope(x, offset, stride, angles, numTokens) {
  const numPairs = angles.length / numTokens;
  for (let token = 0; token < numTokens; token++) {
    for (let pair = 0; pair < numPairs; pair++) {
      const i = token * stride + offset + 2 * pair;
      const [x0, x1] = [x[i], x[i + 1]];
      const cos = Math.cos(angles[token * numPairs + pair]);
      const sin = Math.sin(angles[token * numPairs + pair]);
      x[i] = x0 * cos - x1 * sin;
      x[i + 1] = x1 * cos + x0 * sin;
    }
  }
}

// Scores (length n) → shares that sum to 1. The largest is subtracted, so that none overflows.
function softmax(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// Multi-head self-attention: x (N, width) → (N, width).
// Twin: Attention in vit.py
function attention(x, p, numHeads, rope) {
  const width = p.proj.bias.length;
  const numTokens = x.length / width;
  const headDim = width / numHeads;
  const qkv = linear(x, p.qkv); // (N, 3·width): queries, keys, values
  const out = new Float32Array(x.length);
  for (let head = 0; head < numHeads; head++) {
    const start = head * headDim;
    applyRope(qkv, start, 3 * width, rope, numTokens);
    applyRope(qkv, width + start, 3 * width, rope, numTokens);
    attend(qkv, start, headDim, width, out);
  }
  return linear(out, p.proj);
}

// One head, whose channels begin at `start`: each token takes a weighted mean of all values.
function attend(qkv, start, headDim, width, out) {
  const numTokens = out.length / width;
  const scores = new Float32Array(numTokens);
  for (let i = 0; i < numTokens; i++) {
    const query = 3 * width * i + start;
    for (let j = 0; j < numTokens; j++) {
      const key = 3 * width * j + width + start;
      scores[j] = dot(qkv, query, qkv, key, headDim) / Math.sqrt(headDim);
    }
    softmax(scores).forEach((share, j) => {
      const value = 3 * width * j + 2 * width + start;
      for (let k = 0; k < headDim; k++) out[i * width + start + k] += share * qkv[value + k];
    });
  }
}

// Gated feed-forward layer, w3(silu(gate)·value): (N, width) → (N, width).
// Twin: SwiGLU in vit.py
function swiglu(x, p) {
  const hidden = p.w12.bias.length / 2;
  const gatesAndValues = linear(x, p.w12); // (N, 2·hidden)
  const numTokens = gatesAndValues.length / (2 * hidden);
  const gated = new Float32Array(numTokens * hidden);
  for (let token = 0; token < numTokens; token++) {
    for (let k = 0; k < hidden; k++) {
      const gate = gatesAndValues[token * 2 * hidden + k];
      const value = gatesAndValues[token * 2 * hidden + hidden + k];
      gated[token * hidden + k] = (gate / (1 + Math.exp(-gate))) * value;
    }
  }
  return linear(gated, p.w3);
}

// x·(1 + scale) + shift, for each token of x (N, width).
// Twin: modulate in vit.py
function modulate(x, shift, scale) {
  const width = scale.length;
  return x.map((value, k) => value * (1 + scale[k % width]) + shift[k % width]);
}

// AdaLN: a class embedding c (width) → `count` shifts, scales and gates (width each).
// Twin: modulation in vit.py
function modulation(c, p, count) {
  const all = linear(silu(c), p[1]); // p[0] is SiLU, which has no weights
  const width = all.length / count;
  return Array.from({ length: count }, (_, k) => all.subarray(k * width, (k + 1) * width));
}

// x + gate·y, for each token of x and y (N, width).
function addGated(x, gate, y) {
  return x.map((value, k) => value + gate[k % gate.length] * y[k]);
}

// Transformer block, x (N, width) → (N, width), steered by a class embedding c, if there is one.
// Twin: Block in vit.py
function transformerBlock(x, c, p, numHeads, rope) {
  if (!c) {
    x = add(x, attention(rmsNorm(x, p.norm1), p.attn, numHeads, rope));
    return add(x, swiglu(rmsNorm(x, p.norm2), p.mlp));
  }
  const chunks = modulation(c, p.adaLN_modulation, 6);
  const [shift1, scale1, gate1, shift2, scale2, gate2] = chunks;
  const first = modulate(rmsNorm(x, p.norm1), shift1, scale1);
  x = addGated(x, gate1, attention(first, p.attn, numHeads, rope));
  const second = modulate(rmsNorm(x, p.norm2), shift2, scale2);
  return addGated(x, gate2, swiglu(second, p.mlp));
}

// The last Linear of a network, (N, width) → (N, out), with classes after RMSNorm and AdaLN.
// Twin: FinalLinear in vit.py
function finalLinear(x, c, p) {
  if (c) {
    const [shift, scale] = modulation(c, p.adaLN_modulation, 2);
    x = modulate(rmsNorm(x, p.norm), shift, scale);
  }
  return linear(x, p.linear);
}

// Linear → SiLU → Linear.
// Twin: mix_mlp in vit.py
function mixMlp(x, p) {
  return linear(silu(linear(x, p.mix[0])), p.mix[2]);
}

// MLP-Mixer over x (N, channels): each block mixes tokens, then channels.
// Twin: mlp_mixer in vit.py
function mlpMixer(x, p) {
  const channels = p.norm.weight.length;
  const numTokens = x.length / channels;
  for (const block of inOrder(p.blocks)) {
    const tokensLast = transpose(rmsNorm(x, block.norm1), numTokens); // (channels, N)
    const mixed = transpose(mixMlp(tokensLast, block.tok_mixer), channels); // (N, channels)
    x = add(x, mixed, block.alpha1[0]);
    x = add(x, mixMlp(rmsNorm(x, block.norm2), block.chn_mixer), block.alpha2[0]);
  }
  return rmsNorm(x, p.norm);
}

// The layers of a list, whose names are 0, 1, 2 ...
function inOrder(layers) {
  return Object.values(layers);
}

// ---------------------------------------------------------------- pixels

// A picture (3, H, H) as tokens (N, 3·p²), each one patch of p x p pixels.
// Twin: build_encoder in vit.py, whose convolution also multiplies by its weight
function patchify(x, config) {
  const [size, patch] = [config.image_size, config.patch_size];
  const side = size / patch;
  const out = new Float32Array(x.length);
  for (let k = 0; k < x.length; k++) {
    const column = k % size;
    const row = Math.floor(k / size) % size;
    const channel = Math.floor(k / size ** 2);
    const token = Math.floor(row / patch) * side + Math.floor(column / patch);
    const pixel = (row % patch) * patch + (column % patch);
    out[token * 3 * patch ** 2 + channel * patch ** 2 + pixel] = x[k];
  }
  return out;
}

// The way back: tokens (N, 3·p²) → (3, H, H); PyTorch calls it PixelShuffle.
function unpatchify(tokens, config) {
  const [size, patch] = [config.image_size, config.patch_size];
  const side = size / patch;
  return new Float32Array(tokens.length).map((_, k) => {
    const column = k % size;
    const row = Math.floor(k / size) % size;
    const channel = Math.floor(k / size ** 2);
    const token = Math.floor(row / patch) * side + Math.floor(column / patch);
    const pixel = (row % patch) * patch + (column % patch);
    return tokens[token * 3 * patch ** 2 + channel * patch ** 2 + pixel];
  });
}

// 3 x 3 convolution of x (in, H, H) → (out, H, H); what lies beyond the border is its mirror image.
function conv2d(x, size, { weight, bias }) {
  const numOut = bias.length;
  const numIn = weight.length / (9 * numOut);
  const mirror = (i) => (i < 0 ? -i : i >= size ? 2 * size - 2 - i : i);
  const out = new Float32Array(numOut * size * size);
  for (let o = 0; o < numOut; o++) {
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        let sum = bias[o];
        for (let c = 0; c < numIn; c++) {
          for (let k = 0; k < 9; k++) {
            const y = mirror(row + Math.floor(k / 3) - 1);
            const value = x[(c * size + y) * size + mirror(column + (k % 3) - 1)];
            sum += weight[(o * numIn + c) * 9 + k] * value;
          }
        }
        out[(o * size + row) * size + column] = sum;
      }
    }
  }
  return out;
}

// Transposed convolution of x (in, side, side) → (3, H, H): each input paints a square of p + 2
// pixels a side, one pixel wider all round than its patch.
function convTranspose2d(x, config, { weight, bias }) {
  const [size, patch] = [config.image_size, config.patch_size];
  const [side, kernel] = [size / patch, patch + 2];
  const out = new Float32Array(3 * size * size).map((_, k) => bias[Math.floor(k / size ** 2)]);
  for (let k = 0; k < weight.length; k++) { // weight (in, 3, kernel, kernel)
    const [dx, dy] = [k % kernel, Math.floor(k / kernel) % kernel];
    const o = Math.floor(k / kernel ** 2) % 3;
    const c = Math.floor(k / (3 * kernel ** 2));
    for (let i = 0; i < side * side; i++) {
      const row = Math.floor(i / side) * patch + dy - 1;
      const column = (i % side) * patch + dx - 1;
      const isInside = row >= 0 && row < size && column >= 0 && column < size;
      if (isInside) out[(o * size + row) * size + column] += weight[k] * x[c * side * side + i];
    }
  }
  return out;
}

// The decoder's last layers: tokens (N, channels) → picture (3, H, H) in [-1, 1].
// Twin: pixel_head in vit.py
function pixelHead(tokens, config, p) {
  const side = config.image_size / config.patch_size;
  if (config.pixel_head === "linear") {
    return conv2d(unpatchify(tokens, config), config.image_size, p[2]).map(Math.tanh);
  }
  const map = conv2d(transpose(tokens, side * side), side, p[2]); // (32, side, side)
  return convTranspose2d(silu(map), config, p[4]).map(Math.tanh);
}

// ---------------------------------------------------------------- the model

// The tensors of a safetensors file in base64, by name: eight bytes hold the length of a header in
// JSON, which says where each tensor's numbers lie behind it. Halves become a Float32Array.
function readTensors(base64) {
  const text = atob(base64.trim());
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
  const start = 8 + new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const tensors = {};
  for (const [name, { dtype, data_offsets: [first, end] }] of Object.entries(header)) {
    const own = bytes.subarray(start + first, start + end);
    tensors[name] = dtype === "F16" ? halvesToFloats(own) : own;
  }
  return tensors;
}

// Two bytes a number, the lower one first → Float32Array.
function halvesToFloats(bytes) {
  const out = new Float32Array(bytes.length / 2);
  for (let k = 0; k < out.length; k++) {
    out[k] = halfToFloat(bytes[2 * k] | (bytes[2 * k + 1] << 8));
  }
  return out;
}

const HALF_UNITS = Array.from({ length: 32 }, (_, exponent) => 2 ** (Math.max(exponent, 1) - 25));

// A half-precision number: one bit of sign, five of exponent, ten of fraction.
function halfToFloat(bits) {
  const exponent = (bits >> 10) & 31;
  const whole = (bits & 1023) + (exponent ? 1024 : 0); // a leading 1, but for the smallest numbers
  return (bits & 0x8000 ? -whole : whole) * HALF_UNITS[exponent];
}

// The model: its settings, as in config.json, and its tensors by name. Dots in the names become
// nested objects, so that model.decoder.blocks[0].attn.qkv.weight is one array.
// Twin: SphereEncoder in model.py
function makeModel(config, tensors) {
  const side = config.image_size / config.patch_size;
  const model = { config, rope: ropeAngles(config.width / config.num_heads, side) };
  for (const [name, numbers] of Object.entries(tensors)) {
    const path = name.split(".");
    const last = path.pop();
    let layer = model;
    for (const key of path) layer = layer[key] ??= {};
    layer[last] = numbers;
  }
  return model;
}

// N·D, the numbers of one latent.
// Twin: latent_shape in config.py
function latentLength(config) {
  return (config.image_size / config.patch_size) ** 2 * config.latent_channels;
}

// Largest noise strength, tan(alpha_max).
// Twin: sigma_max in config.py
function sigmaMax(config) {
  return sigmaFromAngle(config.alpha_max_deg);
}

// A class embedding (width) from the table of one end `p`, or null without classes. y: a class's
// number; null, the null class, which is the last row; or a list of shares that mixes all rows.
// Twin: embed_labels in model.py
function embedLabels(config, p, y) {
  if (!config.num_classes) return null;
  const table = p.y_embedder.embedding_table.weight; // (classes + 1, width)
  if (Array.isArray(y)) return linear(y, { weight: transpose(table, y.length) }, config.width);
  const row = y ?? config.num_classes;
  return table.subarray(row * config.width, (row + 1) * config.width);
}

// The Vision Transformer between a network's two ends: (N, width) → (N, out).
// Twin: ViT in vit.py
function vit(x, c, p, model) {
  x = add(x, p.pos_embed);
  for (const block of inOrder(p.blocks)) {
    x = transformerBlock(x, c, block, model.config.num_heads, model.rope);
  }
  return finalLinear(x, c, p.ffn);
}

// A picture x (3, H, H) in [-1, 1] and a label → raw latent z (N, D).
// Twin: encode in model.py
function encode(model, x, y = null) {
  const { config, encoder: p } = model;
  const patches = linear(patchify(x, config), p.x_embedder[0], config.width); // (N, width)
  const tokens = linear(patches, p.x_embedder[1]);
  const z = vit(tokens, embedLabels(config, p, y), p, model);
  return config.mixer_depth ? mlpMixer(z, p.out) : z;
}

// A point v (N, D) and a label → picture (3, H, H) in [-1, 1].
// Twin: decode in model.py
function decode(model, v, y = null) {
  const { config, decoder: p } = model;
  const first = config.mixer_depth ? p.x_embedder[0] : p.x_embedder;
  let tokens = linear(v, first); // (N, width)
  if (config.mixer_depth) tokens = mlpMixer(tokens, p.x_embedder[1]);
  return pixelHead(vit(tokens, embedLabels(config, p, y), p, model), config, p.out);
}

// ---------------------------------------------------------------- sampling

// Weights (on the latent, on the pixels) for guidance w at a place; √w each for "both".
// Twin: guidance_weights in sampling.py
function guidanceWeights(guidance, place) {
  const root = Math.sqrt(guidance);
  return { latent: [guidance, 1], pixel: [1, guidance], both: [root, root] }[place];
}

// Classifier-free guidance: u + w·(cond - u), where u is the output under the null label.
// Twin: guided in sampling.py
function guided(network, model, value, y, w) {
  const conditional = network(model, value, y);
  if (w === 1 || y === null) return conditional; // no second pass
  const unconditional = network(model, value, null);
  return unconditional.map((u, k) => u + w * (conditional[k] - u));
}

function clamp(x) {
  return x.map((value) => Math.min(Math.max(value, -1), 1));
}

// Pictures in [-1, 1], the network's range, as [0, 1], which screens and files take.
// Twin: to_unit_range in data/images.py
function toUnitRange(x) {
  return x.map((value) => (value + 1) / 2);
}

// The refinement loop: encode → spherify → tilt by r·sigma_max·e → decode. stepNoise: a list of
// noises (N·D each), one a pass. Yields the picture after each pass; x and they lie in [-1, 1].
// Twin: refine in sampling.py
function* refine(model, x, y, stepNoise, options = {}) {
  const { strength = 1, guidance = 1, guidancePlace = "both", decay = false } = options;
  const [onLatent, onPixels] = guidanceWeights(guidance, guidancePlace);
  for (const [k, e] of stepNoise.entries()) {
    const r = decay ? strength * (1 - (k + 1) / (stepNoise.length + 1)) : strength;
    let v = spherify(guided(encode, model, x, y, onLatent)); // (N, D)
    v = perturb(v, r * sigmaMax(model.config), e);
    x = clamp(guided(decode, model, v, y, onPixels)); // (3, H, H)
    yield x;
  }
}

// Decode the random point f(noise), then refine. Yields the picture after each step, in [-1, 1].
// Twin: generate in sampling.py
function* generate(model, y, noise, stepNoise, options = {}) {
  const { guidance = 1, guidancePlace = "both" } = options;
  const [, onPixels] = guidanceWeights(guidance, guidancePlace);
  const x = clamp(guided(decode, model, spherify(noise), y, onPixels));
  yield x;
  yield* refine(model, x, y, stepNoise, options);
}

// D(f(E(x, y)), y), without noise.
// Twin: reconstruct in sampling.py (of pictures in [0, 1])
function reconstruct(model, x, y = null) {
  return decode(model, spherify(encode(model, x, y)), y);
}

if (typeof module !== "undefined") { // in node, for the tests; a page reads the names directly
  module.exports = {
    spherify, perturb, slerp, angleBetween, sigmaFromAngle, randn, uniformNumbers, drawFromSeed,
    readTensors, makeModel, latentLength, sigmaMax, encode, decode, guided, refine, generate,
    reconstruct, toUnitRange,
  };
}
