"""Run model.tflite on an input, or compare it with the golden vectors.

    python run_model.py picture.png      an image file, which needs Pillow, or a .npy file with an array
    python run_model.py --self-test      exit code 1 if an output differs from the golden vectors
    python run_model.py --self-test 1    the same, but outputs may differ by 1 quantized value

Another processor may round differently: golden/golden.json has the differences that were measured.
Several inputs are several files, in the order of io.json. It needs Python 3.10 or later, and the packages numpy and
ai-edge-litert.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

FOLDER = Path(__file__).resolve().parent.parent
IO = json.loads((FOLDER / "io.json").read_text(encoding="utf-8"))


def preprocess(values, entry):
    """Return an array of real units (pixels, audio samples, tokens) as the input `entry` of io.json is fed."""
    array = np.asarray(values)
    for step in entry["preprocessing"]:
        if step["step"] == "resize":
            array = resize_bilinear(array.astype(np.float32), step["height"], step["width"])
        elif step["step"] == "normalize":
            mean, std = np.asarray(step["mean"], np.float32), np.asarray(step["std"], np.float32)
            array = (array.astype(np.float32) - mean) / std
        elif step["step"] == "scale_offset":
            array = array.astype(np.float32) * np.float32(step["scale"]) + np.float32(step["offset"])
        elif step["step"] == "quantize":
            array = quantize(array, step["scale"], step["zero_point"], entry["dtype"])
        elif step["step"] != "tokenize":  # the values are the numbers of tokens already
            raise ValueError(f"unknown preprocessing step {step['step']!r}")
    cast = np.asarray(array, entry["dtype"], order="C")
    if cast.dtype.kind != "f" and not np.array_equal(cast, array):
        raise ValueError(f"input {entry['name']}: expected {entry['dtype']} values, got others ({array.dtype})")
    return cast


def quantize(values, scale, zero_point, dtype):
    """Return round(values / scale) + zero_point, limited to the range of `dtype`. Half is rounded to even."""
    if np.isnan(values).any():
        raise ValueError("expected numbers, got NaN")
    limits = np.iinfo(dtype)
    steps = np.rint(values.astype(np.float32) * (np.float32(1) / np.float32(scale)))
    return np.clip(steps + np.float32(zero_point), limits.min, limits.max).astype(dtype)


def dequantize(values, entry):
    """Return the real values of the output `entry` of io.json, as float32."""
    if entry["scale"] is None:
        return values.astype(np.float32)
    return (values.astype(np.int32) - entry["zero_point"]).astype(np.float32) * np.float32(entry["scale"])


def resize_bilinear(images, height, width):
    """Return images (n, height, width, channels) in another size: half-pixel centers, no antialiasing."""
    if images.shape[1:3] == (height, width):
        return images
    left, right, column_weight = neighbors(images.shape[2], width)
    top, bottom, row_weight = neighbors(images.shape[1], height)
    columns = interpolate(images[:, :, left], images[:, :, right], column_weight[:, None])
    return interpolate(columns[:, top], columns[:, bottom], row_weight[:, None, None])


def neighbors(source, target):
    """Return, for each of `target` pixels, its two neighbors among `source` pixels and its distance from the first."""
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    below = np.floor(position)
    return np.maximum(below, 0).astype(int), np.minimum(below + 1, source - 1).astype(int), position - below


def interpolate(first, second, weight):
    """Return first + (second - first) * weight."""
    return first + (second - first) * weight


class Model:
    """The model, loaded into an interpreter."""

    def __init__(self, path=FOLDER / "model.tflite"):
        """Load the model. XNNPACK runs it on the CPU."""
        self.interpreter = Interpreter(str(path))

    def run(self, inputs):
        """Return the outputs for inputs in the model's own types, both in the order of io.json."""
        details = self.interpreter.get_input_details()
        for detail, array, entry in zip(details, inputs, IO["inputs"], strict=True):
            expected = entry["shape"]
            fits = zip(array.shape, expected, strict=False)
            if array.ndim != len(expected) or any(size != length and length != -1 for size, length in fits):
                raise ValueError(f"input {entry['name']}: expected shape {expected}, got {list(array.shape)}")
            if tuple(detail["shape"]) != array.shape:
                self.interpreter.resize_tensor_input(detail["index"], array.shape)
        self.interpreter.allocate_tensors()
        for detail, array in zip(details, inputs, strict=True):
            self.interpreter.set_tensor(detail["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(detail["index"]) for detail in self.interpreter.get_output_details()]


def top_classes(scores, labels, count=3):
    """Return [(class number, name, score)] of the highest scores, best first."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:count]
    return [(int(index), labels[index], float(scores[index])) for index in order]


def read_array(entry):
    """Return the array of a file of golden.json."""
    data = np.fromfile(FOLDER / entry["file"], np.dtype(entry["dtype"]).newbyteorder("<"))
    return data.astype(entry["dtype"]).reshape(entry["shape"])


def self_test(tolerance):
    """Return the problems of a comparison with the golden vectors, and the number of vectors.

    Outputs may differ by `tolerance` quantized values.
    """
    golden = json.loads((FOLDER / "golden" / "golden.json").read_text(encoding="utf-8"))
    model, problems = Model(), []
    for number, example in enumerate(golden["examples"]):
        fed = []
        for entry, stored in zip(IO["inputs"], example["inputs"], strict=True):
            array = preprocess(read_array(stored["source"]), entry)
            problems += compare(f"vector {number}, input {entry['name']}", array, read_array(stored))
            fed.append(array)
        for entry, stored, output in zip(IO["outputs"], example["outputs"], model.run(fed), strict=True):
            where = f"vector {number}, output {entry['name']}"
            allowed = tolerance if entry["scale"] else 0
            problems += compare(where, output, read_array(stored), is_output=True, allowed=allowed)
            decoded = {"file": stored["decoded_file"], "dtype": "float32", "shape": stored["shape"]}
            real = dequantize(output, entry)
            allowed *= entry["scale"] or 0
            problems += compare(f"{where}, decoded", real, read_array(decoded), is_output=True, allowed=allowed)
            if "top" in stored and not allowed:
                scores = real.reshape(-1, len(entry["labels"]))[0]
                name = top_classes(scores, entry["labels"], 1)[0][1]
                if name != stored["top"][0]["label"]:
                    problems.append(f"{where}: the best class is {name}, expected {stored['top'][0]['label']}")
    return problems, len(golden["examples"])


def compare(where, array, expected, is_output=False, allowed=0):
    """Return a sentence if arrays differ by more than `allowed`. Float outputs may differ by rounding as well."""
    if array.shape != expected.shape:
        return [f"{where}: shape {array.shape}, expected {expected.shape}"]
    same = array == expected  # also infinities, whose difference is NaN
    difference = np.abs(np.subtract(array, expected, dtype=np.float64, where=~same, out=np.zeros(same.shape)))
    is_rounded = np.isfinite(expected) & (is_output and array.dtype.kind == "f")
    rounding = np.where(is_rounded, 1e-5 + 1e-4 * np.abs(expected), 0)
    wrong = ~same
    if array.dtype.kind == "f" or allowed:
        wrong &= ~(difference <= allowed + rounding)
    if not wrong.any():
        return []
    return [f"{where}: {int(wrong.sum())} of {wrong.size} values differ, by at most {difference.max():g}"]


def read_input(path, entry):
    """Return the array of an image file or a .npy file, with the dimension of the batch."""
    if path.endswith(".npy"):
        array = np.load(path)
    else:
        from PIL import Image

        array = np.asarray(Image.open(path).convert("L" if entry["shape"][-1] == 1 else "RGB"))
        array = array.reshape(*array.shape[:2], -1)
    return array[None] if array.ndim == len(entry["shape"]) - 1 else array


def main(arguments):
    """Run the command; return its exit code."""
    if arguments[:1] == ["--self-test"] and len(arguments) <= 2:
        tolerance = float(arguments[1]) if arguments[1:] else 0
        problems, count = self_test(tolerance)
        close = f"inputs are equal, outputs differ by at most {tolerance:g} quantized values"
        equal = close if tolerance else "inputs, outputs and classes agree"
        print("\n".join(problems) or f"{count} golden vectors: {equal}")
        return 1 if problems else 0
    if len(arguments) != len(IO["inputs"]) or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    fed = [preprocess(read_input(path, entry), entry) for path, entry in zip(arguments, IO["inputs"], strict=True)]
    for entry, output in zip(IO["outputs"], Model().run(fed), strict=True):
        real = dequantize(output, entry)
        if entry["labels"] and np.prod(real.shape[1:-1]) == 1:
            for index, name, score in top_classes(real.reshape(-1, len(entry["labels"]))[0], entry["labels"]):
                print(f"{entry['name']}: {name} (class {index}): {score:.4f}")
        else:
            print(f"{entry['name']}: {real}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
