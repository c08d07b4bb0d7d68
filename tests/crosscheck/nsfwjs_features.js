// node nsfwjs_features.js PIXELS OUT: what nsfwjs itself makes of one 299x299 RGB picture, as JSON.
const fs = require("fs");
const tf = require("@tensorflow/tfjs");
require("@tensorflow/tfjs-backend-wasm");
const nsfwjs = require("nsfwjs");

async function main([pixels, out]) {
  await tf.setBackend("wasm");
  const model = await nsfwjs.load("InceptionV3");
  const picture = tf.tensor3d(Array.from(fs.readFileSync(pixels)), [299, 299, 3], "int32");
  const features = Array.from(await model.infer(picture, "flatten_1").data());
  const classes = Array.from(await model.infer(picture).data());
  fs.writeFileSync(out, JSON.stringify({ features, classes }));
}

main(process.argv.slice(2));
