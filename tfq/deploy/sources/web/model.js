// tfq:begin header
// How the values of an app become a model's inputs, and its outputs become results. tfq fills in the marked parts.
// tfq:end header
import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

/** The model's inputs. */
export const INPUTS = [
  // tfq:begin inputs
  {name: 'image', shape: [1, 8, 8, 1], dtype: 'uint8', quantization: {scale: 0.0625, zeroPoint: 0}, resize: true},
  // tfq:end inputs
];

/** The model's outputs. */
export const OUTPUTS = [
  // tfq:begin outputs
  {name: 'scores', shape: [1, 10], dtype: 'uint8', quantization: {scale: 0.00390625, zeroPoint: 0}},
  // tfq:end outputs
];

const ARRAYS = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

/**
 * A model in LiteRT.js, on the CPU (WebAssembly with XNNPACK).
 *
 *     const model = await Model.load('../model.tflite', './node_modules/@litertjs/core/wasm/');
 *     const pixels = rgbOf(context.getImageData(0, 0, width, height));
 *     const outputs = await model.run([encodeImage(INPUTS[0], pixels, height, width)]);
 *     const [best] = topCategories(decode(OUTPUTS[0], outputs[0]), labels);
 */
export class Model {
  constructor(compiled) {
    this.compiled = compiled;
  }

  /** Load LiteRT.js, in threads if the page's headers allow them, and the model. */
  static async load(modelUrl, wasmUrl) {
    await loadLiteRt(wasmUrl, {threads: globalThis.crossOriginIsolated});
    return new Model(await loadAndCompile(modelUrl, {accelerator: 'wasm'}));
  }

  /** Return one typed array for each of OUTPUTS, given one for each of INPUTS. */
  async run(arrays) {
    const inputs = Object.fromEntries(INPUTS.map(({name, shape}, i) => [name, new Tensor(arrays[i], shape)]));
    try {
      const outputs = await this.compiled.run(inputs);
      return OUTPUTS.map(({name}) => {
        const array = outputs[name].toTypedArray().slice();
        outputs[name].delete();
        return array;
      });
    } finally {
      Object.values(inputs).forEach((tensor) => tensor.delete());
    }
  }
}

/** Return the input's array for an image of any size: rows of pixels with their channels. */
export function encodeImage(input, pixels, height, width) {
  const [, newHeight, newWidth, channels] = input.shape;
  if (input.resize) return encode(input, resizeBilinear(pixels, height, width, channels, newHeight, newWidth));
  if (height !== newHeight || width !== newWidth) {
    throw new RangeError(`${input.name}: expected ${newHeight}x${newWidth} pixels, got ${height}x${width}`);
  }
  return encode(input, pixels);
}

/**
 * Return the input's array for values in its shape: multiplied by `scale` plus `offset`, minus `mean`, divided by `std`
 * (one for all channels, or one for each), and quantized. All in float32, as training did.
 */
export function encode(input, values) {
  const {name, shape, dtype, quantization, scale = 1, offset = 0, mean = [0], std = [1]} = input;
  if (values.length !== sizeOf(shape)) {
    throw new RangeError(`${name}: expected ${sizeOf(shape)} values (${shape.join('x')}), got ${values.length}`);
  }
  if (dtype !== 'float32' && !quantization) {
    const integers = ARRAYS[dtype].from(values);
    if (integers.some((value, place) => value !== values[place])) {
      throw new RangeError(`${name}: expected ${dtype} values, got others`);
    }
    return integers;
  }
  const {fround} = Math;
  const reals = Float32Array.from(values, (value, place) => {
    const scaled = fround(fround(value * fround(scale)) + fround(offset));
    return fround(scaled - fround(mean[place % mean.length])) / fround(std[place % std.length]);
  });
  if (reals.some(Number.isNaN)) throw new RangeError(`${name}: expected numbers, got NaN`);
  return quantization ? quantize(reals, quantization) : reals;
}

/** Return the real values of an output's array. */
export function decode({quantization}, array) {
  if (!quantization) return Float32Array.from(array);
  const scale = Math.fround(quantization.scale);
  return Float32Array.from(array, (value) => (value - quantization.zeroPoint) * scale);
}

/** Return the `k` categories with the highest scores, best first; of equal scores, the lower index comes first. */
export function topCategories(scores, labels, k = 5) {
  const categories = Array.from(scores, (score, index) => ({index, label: labels[index] ?? String(index), score}));
  return categories.sort((a, b) => b.score - a.score).slice(0, k);
}

/** Return red, green and blue (0 to 255) of the pixels of an ImageData. */
export function rgbOf({data}) {
  return data.filter((_, place) => place % 4 !== 3);
}

/**
 * Return images (rows, columns, channels; one or several in a row) in a new size.
 *
 * Bilinear with half-pixel centers, without antialiasing, with repeated edge pixels: what tf.image.resize and tfq
 * compute. drawImage of a canvas computes something else.
 */
export function resizeBilinear(pixels, height, width, channels, newHeight, newWidth) {
  const size = height * width * channels;
  if (!size || pixels.length % size) {
    throw new RangeError(`expected images of ${height}x${width}x${channels} values, got ${pixels.length} values`);
  }
  const [rows, columns] = [neighbors(height, newHeight), neighbors(width, newWidth)];
  const resized = new Float32Array((pixels.length / size) * newHeight * newWidth * channels);
  let place = 0;
  for (let start = 0; start < pixels.length; start += size) {
    for (const row of rows) {
      for (const column of columns) {
        for (let channel = 0; channel < channels; channel++) {
          const pixel = (y, x) => pixels[start + (y * width + x) * channels + channel];
          const top = mix(pixel(row.first, column.first), pixel(row.first, column.second), column.weight);
          const bottom = mix(pixel(row.second, column.first), pixel(row.second, column.second), column.weight);
          resized[place++] = mix(top, bottom, row.weight);
        }
      }
    }
  }
  return resized;
}

/** Return the two neighboring source pixels of each target pixel, and the weight of the second. */
function neighbors(source, target) {
  const step = Math.fround(source / target);
  return Array.from({length: target}, (_, index) => {
    if (source === target) return {first: index, second: index, weight: 0};
    const position = Math.fround(Math.fround((index + 0.5) * step) - 0.5);
    const below = Math.floor(position);
    return {first: Math.max(below, 0), second: Math.min(below + 1, source - 1), weight: Math.fround(position - below)};
  });
}

/** Interpolate in float32, as training did. */
function mix(first, second, weight) {
  return Math.fround(first + Math.fround(Math.fround(second - first) * weight));
}

/** Return the uint8 values of real ones: rounded half to even, with the zero point added, saturated. */
function quantize(reals, {scale, zeroPoint}) {
  const reciprocal = Math.fround(1 / Math.fround(scale));
  return Uint8Array.from(reals, (real) => {
    const step = Math.fround(real * reciprocal);
    const up = Math.round(step);
    const rounded = up - step === 0.5 && up % 2 ? up - 1 : up;
    return Math.min(Math.max(rounded + zeroPoint, 0), 255);
  });
}

/** Return a typed array of the bytes in a file. */
export function arrayOf(dtype, buffer) {
  return new ARRAYS[dtype](buffer);
}

function sizeOf(shape) {
  return shape.reduce((product, length) => product * length, 1);
}
