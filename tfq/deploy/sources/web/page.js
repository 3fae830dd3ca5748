// tfq:begin header
// A page that runs the self-test, and the model on a picture that its user chooses.
// tfq:end header
import {arrayOf, decode, encode, encodeImage, INPUTS, Model, OUTPUTS, rgbOf, topCategories} from './model.js';

const BUNDLE = new URL('..', import.meta.url);
const WASM = new URL('./node_modules/@litertjs/core/wasm/', import.meta.url).href;
// The largest right difference of each output: in steps of its scale if it is quantized, else in real units.
// tfq:begin tolerances
const TOLERANCES = [1];
// tfq:end tolerances
// The output whose classes labels.txt names; -1 if there are no labels.
// tfq:begin labeled
const LABELED = 0;
// tfq:end labeled

const fetchFrom = async (path) => {
  const response = await fetch(new URL(path, BUNDLE));
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response;
};

async function fetchArray({file, dtype}) {
  const buffer = await (await fetchFrom(file)).arrayBuffer();
  return dtype === 'int64' ? Array.from(new BigInt64Array(buffer), Number) : arrayOf(dtype, buffer);
}

/** Return the inputs that a golden vector's source values become. */
async function encodeSources(example) {
  return Promise.all(example.inputs.map(async ({source}, index) => {
    const input = INPUTS[index];
    const values = await fetchArray(source);
    return input.resize ? encodeImage(input, values, source.shape[1], source.shape[2]) : encode(input, values);
  }));
}

/** Return the failures on a golden vector, the largest difference of each output, and the outputs' real values. */
async function testExample(model, example, labels) {
  const [failures, differences] = [[], []];
  const inputs = await encodeSources(example);
  for (const [index, golden] of example.inputs.entries()) {
    const expected = await fetchArray(golden);
    if (inputs[index].some((value, place) => value !== expected[place])) {
      failures.push(`input ${golden.name} differs from ${golden.file}`);
    }
  }
  const outputs = (await model.run(inputs)).map((array, index) => decode(OUTPUTS[index], array));
  for (const [index, golden] of example.outputs.entries()) {
    const expected = await fetchArray({file: golden.decoded_file, dtype: 'float32'});
    const step = OUTPUTS[index].quantization?.scale ?? 1;
    const largest = largestDifference(outputs[index], expected) / step;
    differences.push(largest);
    const tolerance = TOLERANCES[index];
    // Half a percent of a step is the rounding of float32.
    if (!(largest <= tolerance + 0.005)) {
      failures.push(`output ${golden.name} differs by ${largest}, more than ${tolerance}`);
    }
    if (index !== LABELED) continue;
    const [best] = topCategories(outputs[index].subarray(0, labels.length), labels, 1);
    const {label} = golden.top[0];
    // Scores that may differ by the tolerance may also change places.
    const isTie = tolerance > 0 && best.score - outputs[index][labels.indexOf(label)] <= 2 * tolerance * step;
    if (best.label !== label && !isTie) failures.push(`output ${golden.name}: expected ${label}, got ${best.label}`);
  }
  return {failures, differences, outputs};
}

function largestDifference(values, expected) {
  return values.reduce((most, value, place) => {
    // Infinity equals itself, and NaN nothing.
    return Math.max(most, value === expected[place] ? 0 : Math.abs(value - expected[place]));
  }, 0);
}

function element(tag, className, text) {
  const result = document.createElement(tag);
  result.className = className;
  result.textContent = text;
  return result;
}

/** Return a list of the best categories of the output with labels, or the first values of each output. */
function listOf(outputs, labels) {
  if (LABELED < 0) {
    const first = (values) => Array.from(values.slice(0, 4), (value) => value.toPrecision(4)).join(', ');
    return element('p', 'detail', OUTPUTS.map(({name}, i) => `${name}: ${first(outputs[i])}`).join('; '));
  }
  const list = element('ol', '', '');
  for (const {label, score} of topCategories(outputs[LABELED].subarray(0, labels.length), labels, 3)) {
    list.append(element('li', '', `${label} (${score.toPrecision(3)})`));
  }
  return list;
}

function pictureOf(url) {
  const picture = element('img', 'picture', '');
  picture.src = url;
  picture.alt = 'the input';
  return picture;
}

function show(number, example, {failures, outputs}, labels) {
  const card = element('article', '', '');
  const picture = example.inputs.find((input) => input.picture)?.picture;
  if (picture) card.append(pictureOf(new URL(picture, BUNDLE)));
  card.append(element('h3', '', `Vector ${number}`));
  if (example.label !== null) card.append(element('p', 'detail', `true class: ${example.label}`));
  card.append(listOf(outputs, labels));
  const verdict = failures.length ? 'failed' : 'passed';
  card.append(element('span', `badge ${verdict}`, verdict));
  failures.forEach((failure) => card.append(element('p', 'detail', failure)));
  document.getElementById('examples').append(card);
}

/** Return an image's values in the channels of the input: RGB, or its luma if there is one. */
function channelsOf(image, channels) {
  const rgb = rgbOf(image);
  const luma = (i) => Math.round(0.299 * rgb[3 * i] + 0.587 * rgb[3 * i + 1] + 0.114 * rgb[3 * i + 2]);
  return channels === 3 ? rgb : Float32Array.from({length: rgb.length / 3}, (_, i) => luma(i));
}

/** Let the user choose a picture if the model has one input, and that is an image with pixels from 0 to 255. */
function offerPicture(model, golden, labels) {
  const [input] = INPUTS;
  const {picture, source} = golden.examples[0].inputs[0];
  if (INPUTS.length > 1 || !picture || source.dtype !== 'uint8') return;
  document.getElementById('own').hidden = false;
  document.getElementById('file').addEventListener('change', async ({target}) => {
    const [, height, width, channels] = input.shape;
    const bitmap = await createImageBitmap(target.files[0]);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d', {willReadFrequently: true});
    canvas.drawImage(bitmap, 0, 0);
    const pixels = channelsOf(canvas.getImageData(0, 0, bitmap.width, bitmap.height), channels);
    // Training may have seen only pictures of this size: resize here even if the model's preprocessing does not.
    const array = encodeImage({...input, resize: true}, pixels, bitmap.height, bitmap.width);
    const outputs = (await model.run([array])).map((values, index) => decode(OUTPUTS[index], values));
    const size = `${bitmap.width}x${bitmap.height} pixels, resized to ${width}x${height}`;
    document.getElementById('result').replaceChildren(
      pictureOf(URL.createObjectURL(target.files[0])),
      listOf(outputs, labels),
      element('p', 'detail', channels === 1 ? `${size}, gray` : size),
    );
  });
}

/** Run the self-test. Return whether it passed, and the failures and differences of each golden vector. */
async function selfTest() {
  const golden = await (await fetchFrom('golden/golden.json')).json();
  const labels = LABELED < 0 ? [] : (await (await fetchFrom('labels.txt')).text()).trimEnd().split('\n');
  const model = await Model.load(new URL('model.tflite', BUNDLE).href, WASM);
  const results = [];
  for (const [number, example] of golden.examples.entries()) {
    results.push(await testExample(model, example, labels));
    show(number, example, results.at(-1), labels);
  }
  offerPicture(model, golden, labels);
  return {
    passed: results.every(({failures}) => !failures.length),
    failures: results.map(({failures}) => failures),
    differences: results.map(({differences}) => differences),
  };
}

const verdict = document.getElementById('verdict');
// Tests read the result here.
window.selfTest = selfTest().then(
  (outcome) => {
    const {passed, failures} = outcome;
    const count = failures.filter((list) => !list.length).length;
    verdict.className = passed ? 'passed' : 'failed';
    const result = `${count} of ${failures.length} golden vectors are reproduced`;
    verdict.textContent = `${passed ? 'Passed' : 'Failed'}: ${result}.`;
    return outcome;
  },
  (error) => {
    verdict.className = 'failed';
    verdict.textContent = `Failed: ${error.message}`;
    return {passed: false, failures: [[error.message]], differences: []};
  },
);
