// What a page's model computes: node page_in_node.js sphere.js page.html question.json
"use strict";
const fs = require("fs");

const [code, page, question] = process.argv.slice(2);
const sphere = require(code);
const html = fs.readFileSync(page, "utf-8");
const script = (id) => html.match(new RegExp(`<script [^>]*id="${id}">([^<]*)</script>`))[1];
const model = sphere.makeModel(
  JSON.parse(script("settings")).config,
  sphere.readTensors(script("tensors")),
);
const given = JSON.parse(fs.readFileSync(question, "utf-8"));
const [x, z, e] = [given.x, given.z, given.e].map((numbers) => Float32Array.from(numbers));
const stepNoise = given.stepNoise.map((numbers) => Float32Array.from(numbers));
const { y, guidance } = given;
const v = sphere.spherify(z);

const unit = (pictures) => pictures.map((picture) => [...sphere.toUnitRange(picture)]);
const answer = {
  spherify: [...v],
  perturb: [...sphere.perturb(v, sphere.sigmaMax(model.config), e)],
  slerp: [...sphere.slerp(v, sphere.spherify(e), 0.3)],
  angle: [(sphere.angleBetween(v, e) * Math.PI) / 180],
  encode: [...sphere.spherify(sphere.encode(model, x, y))],
  decode: unit([sphere.decode(model, v, y), sphere.decode(model, v, null)]),
  mixed: unit([sphere.decode(model, v, given.shares)]),
  refine: unit([...sphere.refine(model, x, y, stepNoise)]),
  decayed: unit([...sphere.refine(model, x, y, stepNoise, { decay: true, strength: 0.5 })]),
  guided: ["latent", "pixel", "both"].flatMap((guidancePlace) =>
    unit([...sphere.generate(model, y, z, stepNoise, { guidance, guidancePlace })])),
  reconstruct: unit([sphere.reconstruct(model, x)]),
};
process.stdout.write(JSON.stringify(answer));
