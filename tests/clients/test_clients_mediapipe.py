# SPDX-License-Identifier: Apache-2.0
"""MediaPipe Tasks run files with tfq's metadata as tfq does, and refuse what tfq refuses."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from built_models import Call, T, build, constant
from integration.cifar10 import read_test_split
from one_op_models import options
from sklearn.datasets import load_digits

import tfq
from tfq import models, tflite
from tfq.auditing import io_table
from tfq.deploy import TASKS, ModelDescription, mediapipe_problems, with_model_metadata
from tfq.deploy.steps import apply_steps
from tfq.quant_math import dequantize
from tfq.tflite import ModelMetadata, SubGraphMetadata, TensorMetadata
from tfq.tflite import model_metadata as md

pytestmark = pytest.mark.clients
# `make clients` creates the environment, because MediaPipe needs another version of absl-py than tfmot.
PYTHON = Path(os.environ.get("TFQ_TEST_MEDIAPIPE", Path(sys.prefix) / "mediapipe" / "bin" / "python"))
ROOT = Path(__file__).resolve().parents[2]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = ("cat", "dog", "bird")
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
SOUNDS = np.random.default_rng(0).uniform(-1, 1, (3, 160)).astype(np.float32)
VOCABULARY = b"<PAD> 0\n<START> 1\n<UNKNOWN> 2\ngood 3\nbad 4\nmovie 5"
PIECES = b"[PAD]\n[CLS]\n[SEP]\n[UNK]\ngood\nbad\nmovie\n"
TEXTS = ["good movie", "a bad movie"]
UNIT = {"scale": 1 / 255, "offset": 0.0, "resize": []}


def run_tasks(folder: Path, jobs: list[tuple[str, bytes, object]]) -> list[dict]:
    """Run (task, model, inputs) in MediaPipe's environment; return {"results"} or {"error"} of each."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} does not exist: make clients creates it")
    entries = []
    for number, (task, model, inputs) in enumerate(jobs):
        path = folder / f"{number}.tflite"
        path.write_bytes(model)
        if isinstance(inputs, np.ndarray):
            np.save(folder / f"{number}.npy", inputs)
            inputs = str(folder / f"{number}.npy")
        entries.append({"task": task, "model": str(path), "inputs": inputs})
    (folder / "jobs.json").write_text(json.dumps(entries))
    script = Path(__file__).with_name("mediapipe_tasks.py")
    command = [PYTHON, script, folder / "jobs.json", folder / "results.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


def outputs_of(model: bytes, values: np.ndarray) -> list[np.ndarray]:
    """Return the real outputs of LiteRT's interpreter for each real input, after the steps of io.json."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (detail,), details = interpreter.get_input_details(), interpreter.get_output_details()
    fed = apply_steps(values, io_table(model).to_dict()["inputs"][0], "test")
    results = []
    for example in fed:
        interpreter.set_tensor(detail["index"], example.reshape(detail["shape"]))
        interpreter.invoke()
        arrays = [interpreter.get_tensor(output["index"]) for output in details]
        scales = [output["quantization"] for output in details]
        real = [dequantize(a, *s) if s[0] else a for a, s in zip(arrays, scales, strict=True)]
        results.append(real)
    return [np.stack(arrays) for arrays in zip(*results, strict=True)]


def scores_of(results: list) -> np.ndarray:
    """Return the scores of a classifier's first head in the order of the classes: (examples, classes)."""
    return np.array([[score for _, _, score in sorted(heads[0])] for heads in results])


def constants(outputs: int, inputs: int, seed: int = 0) -> tuple[T, T]:
    rng = np.random.default_rng(seed)
    return constant(rng.normal(size=(outputs, inputs))), constant(rng.normal(size=outputs))


SCALES = {"uint8": (1 / 255, 0), "int8": (1 / 255, -128)}
SCORE_SCALES = {"uint8": (1 / 256, 0), "int8": (1 / 256, -128)}


class Network:
    """Builds a flatbuffer op by op, with quantized or float inputs and outputs around a float network."""

    def __init__(self) -> None:
        self.tensors, self.ops, self.inputs, self.outputs = {}, [], [], []

    def add(self, op: str, inputs: list[str], name: str, tensor: T, settings=None) -> str:
        self.tensors[name] = tensor
        self.ops.append(Call(op, inputs, [name], settings))
        return name

    def input(self, shape, dtype: str, quantization=None, name: str = "x") -> str:
        """Add an input; return the float32 tensor with its values."""
        self.inputs.append(name)
        scale = quantization or SCALES.get(dtype)
        self.tensors[name] = T(dtype, shape, *scale) if scale else T(dtype, shape)
        if dtype == "float32":
            return name
        return self.add("DEQUANTIZE" if scale else "CAST", [name], f"{name}_float", T("float32", shape))

    def dense(self, source: str, outputs: int, shape, name: str, seed: int = 0) -> str:
        """Add RESHAPE, FULLY_CONNECTED, RESHAPE."""
        count = int(np.prod(self.tensors[source].shape))
        flat = self.reshape(source, (1, count), f"{name}_flat")
        self.tensors[f"{name}_kernel"], self.tensors[f"{name}_bias"] = constants(outputs, count, seed)
        settings = options("FullyConnected")
        inputs = [flat, f"{name}_kernel", f"{name}_bias"]
        result = self.add("FULLY_CONNECTED", inputs, f"{name}_dense", T("float32", (1, outputs)), settings)
        return self.reshape(result, shape, name)

    def reshape(self, source: str, shape, name: str) -> str:
        self.tensors[f"{name}_shape"] = constant(shape, "int32")
        settings = options("Reshape", newShape=list(shape))
        return self.add("RESHAPE", [source, f"{name}_shape"], name, T("float32", tuple(shape)), settings)

    def softmax(self, source: str, name: str = "scores") -> str:
        settings = options("Softmax", beta=1.0)
        return self.add("SOFTMAX", [source], name, T("float32", self.tensors[source].shape), settings)

    def output(self, source: str, dtype: str) -> None:
        if dtype in SCORE_SCALES:
            tensor = T(dtype, self.tensors[source].shape, *SCORE_SCALES[dtype])
            source = self.add("QUANTIZE", [source], f"{source}_{dtype}", tensor)
        elif dtype != "float32":
            source = self.add("CAST", [source], f"{source}_{dtype}", T(dtype, self.tensors[source].shape))
        self.outputs.append(source)

    def model(self) -> bytes:
        return build(self.tensors, self.ops, self.inputs, self.outputs)


def classifier(
    dtype="float32", scores="float32", shape=(1, 4, 4, 3), quantization=None, output_shape=(1, 3), inputs=1
) -> bytes:
    network = Network()
    source = network.input(shape, dtype, quantization)
    for number in range(1, inputs):
        network.input(shape, dtype, quantization, f"x{number}")
    network.output(network.softmax(network.dense(source, int(np.prod(output_shape)), output_shape, "logits")), scores)
    return network.model()


def segmenter(dtype="float32", scores="float32", output_shape=(1, 4, 4, 3)) -> bytes:
    network = Network()
    source = network.input((1, 4, 4, 3), dtype)
    network.output(network.softmax(network.dense(source, int(np.prod(output_shape)), output_shape, "logits")), scores)
    return network.model()


def detector(dtype="uint8", scores="float32", outputs=4) -> bytes:
    """Boxes (top, left, bottom, right), classes, scores and count; scores depend on the picture."""
    network = Network()
    source = network.input((1, 4, 4, 3), dtype)
    shapes = {"boxes": (1, 2, 4), "classes": (1, 2), "scores": (1, 2), "count": (1,)}
    values = {"boxes": [0, 0.25, 0.5, 0.75, 0.25, 0, 1, 0.5], "classes": [1, 0], "count": [2]}
    for name, shape in list(shapes.items())[:outputs]:
        result = network.dense(source, int(np.prod(shape)), shape, f"{name}_raw")
        if name in values:
            kernel = network.tensors[f"{name}_raw_kernel"]
            network.tensors[f"{name}_raw_kernel"] = constant(0 * kernel.values)
            network.tensors[f"{name}_raw_bias"] = constant(values[name])
        else:
            result = network.add("LOGISTIC", [result], name, T("float32", shape))
        network.output(result, scores)
    return network.model()


def reader_of_text(dtype="int32", scores="float32", shape=(1, 6), inputs=1) -> bytes:
    network = Network()
    names = ["x", *(f"x{number}" for number in range(1, inputs))]
    sources = [network.input(shape, dtype, name=name) for name in names]
    results = [network.dense(source, 3, (1, 3), f"logits_{source}") for source in sources]
    network.output(network.softmax(results[0]), scores)
    return network.model()


def described(model: bytes, **fields) -> bytes:
    """Return the model with metadata. Pixels are divided by 255, as the input scale of these models expects."""
    if "detection_outputs" not in fields:
        fields.setdefault("labels", ANIMALS)
    return with_model_metadata(tflite.write_metadata(model, {"preprocessing": UNIT}), ModelDescription(**fields))


def detecting(model: bytes, **fields) -> bytes:
    names = tflite.read(model).output_names
    return described(model, detection_outputs=tuple(names), value_labels=("cat", "dog"), **fields)


def hearing(model: bytes, **fields) -> bytes:
    kinds = dict.fromkeys(tflite.read(model).input_names, "audio")
    return with_model_metadata(model, ModelDescription(labels=ANIMALS, kinds=kinds, **{"sample_rate": 16000, **fields}))


def reading(model: bytes, **fields) -> bytes:
    kinds = dict.fromkeys(tflite.read(model).input_names, "text")
    settings = {"tokenizer": "regex", "vocabulary": VOCABULARY, "labels": ANIMALS, **fields}
    return with_model_metadata(model, ModelDescription(kinds=kinds, **settings))


@pytest.fixture(scope="module")
def pictures_and_model():
    """Return 200 pictures, a classifier as a converted uint8 file, and the same with float32 inputs.

    They are CIFAR-10 and MLPerf Tiny's ResNet8 on machines that have ../shared, else enlarged digits and an untrained
    model, because the check of a change must not skip this test.
    """
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        images, _ = read_test_split(shared, limit=200)
        source = shared / "models" / "mlperf_tiny_resnet8_cifar10.h5"
        model = tfq.load_model(source)
    else:
        import tf_keras

        digits = np.clip(load_digits().images[:200] * 16, 0, 255).astype(np.uint8)
        images = digits.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
        tf_keras.utils.set_random_seed(0)
        model = models.MODELS["resnet8"](tf_keras)
    samples = images[:16].astype(np.float32)
    converted = {}
    for dtype in ("uint8", "float32"):
        config = tfq.ConversionConfig(
            inference_input_type=dtype, inference_output_type=dtype, num_calibration_samples=16, verify=False
        )
        content = tfq.convert(model, samples, config)
        content = tflite.write_metadata(content, {"preprocessing": {"scale": 1.0, "offset": 0.0, "resize": []}})
        converted[dtype] = with_model_metadata(content, ModelDescription(name="resnet8", labels=CIFAR10))
    return images, converted


def test_image_classifier_classifies_200_pictures_as_tfq(tmp_path, pictures_and_model):
    images, converted = pictures_and_model
    outcomes = run_tasks(tmp_path, [("image_classifier", model, images) for model in converted.values()])
    for model, outcome in zip(converted.values(), outcomes, strict=True):
        (expected,) = outputs_of(model, images)
        expected = expected.reshape(len(images), -1)
        np.testing.assert_array_equal(scores_of(outcome["results"]), expected.astype(np.float64))
        best = [max(heads[0], key=lambda category: category[2]) for heads in outcome["results"]]
        assert all(expected[place].max() == expected[place, index] for place, (index, _, _) in enumerate(best))
        assert all(name == CIFAR10[index] for index, name, _ in best)
        assert len({index for index, _, _ in best}) > 1 or not (ROOT.parent / "shared").is_dir()
        assert not mediapipe_problems(io_table(model), io_table(model).metadata, "image_classifier")
        assert not io_table(model).notes


def test_pictures_are_normalized_as_tfq_preprocesses_them(tmp_path):
    """Float32 inputs: (x - mean) / std in MediaPipe, x * scale + offset in tfq."""
    models = []
    for scale, offset in ((2 / 255, -1.0), (1 / 58, -123.7 / 58), (1.0, 0.0)):
        record = {"preprocessing": {"scale": scale, "offset": offset, "resize": []}}
        model = tflite.write_metadata(classifier(), record)
        models.append(with_model_metadata(model, ModelDescription(labels=ANIMALS)))
    outcomes = run_tasks(tmp_path, [("image_classifier", model, PICTURES) for model in models])
    for model, outcome in zip(models, outcomes, strict=True):
        (expected,) = outputs_of(model, PICTURES)
        np.testing.assert_allclose(scores_of(outcome["results"]), expected[:, 0], rtol=2e-4, atol=1e-6)


def test_bytes_that_mean_something_else_are_classified_otherwise(tmp_path):
    """Negative control of the problem that tfq reports for a file that MediaPipe does not refuse."""
    model = described(classifier("uint8", quantization=(1 / 255, 64)))
    (problem,) = mediapipe_problems(io_table(model), io_table(model).metadata, "image_classifier")
    assert not problem.refused
    (outcome,) = run_tasks(tmp_path, [("image_classifier", model, PICTURES)])
    (expected,) = outputs_of(model, PICTURES)
    assert np.abs(scores_of(outcome["results"]) - expected[:, 0]).max() > 0.01


def test_segmenter_detector_audio_and_text_run_as_tfq(tmp_path):
    pairs = [*itertools.product(("float32", "uint8"), ("float32", "uint8", "int8"))]
    segmenters = [described(segmenter(*types)) for types in pairs]
    detectors = [detecting(detector(dtype)) for dtype in ("uint8", "float32")]
    sounds = [hearing(classifier(scores=scores, shape=(1, 160))) for scores in ("float32", "uint8")]
    texts = [reading(reader_of_text())]
    bert = reading(reader_of_text(inputs=3), tokenizer="wordpiece", vocabulary=PIECES, bert_inputs=("x", "x1", "x2"))
    jobs = [
        *(("image_segmenter", model, PICTURES) for model in segmenters),
        *(("object_detector", model, PICTURES) for model in detectors),
        *(("audio_classifier", model, SOUNDS) for model in sounds),
        *(("text_classifier", model, TEXTS) for model in [*texts, bert]),
    ]
    outcomes = run_tasks(tmp_path, jobs)
    assert [outcome.get("error") for outcome in outcomes] == [None] * len(jobs)
    results = [outcome["results"] for outcome in outcomes]
    for model, result in zip(segmenters, results, strict=False):
        (expected,) = outputs_of(model, PICTURES)
        masks = np.array([item["masks"] for item in result["results"]])
        np.testing.assert_allclose(masks.transpose(0, 2, 3, 1), expected[:, 0], rtol=1e-6)
        classes = np.array([item["classes"] for item in result["results"]])
        np.testing.assert_array_equal(
            np.take_along_axis(expected[:, 0], classes[..., None], -1)[..., 0], expected[:, 0].max(-1)
        )
        assert result["labels"] == list(ANIMALS)
    for model, result in zip(detectors, results[len(segmenters) :], strict=False):
        _, _, scores, _ = outputs_of(model, PICTURES)
        for detections, (row,) in zip(result, scores, strict=True):
            boxes = {name: (score, box) for name, score, *box in detections}
            # left, top, width, height in pixels of the 4x4 picture.
            assert boxes["dog"] == (pytest.approx(row[0], rel=1e-6), [1, 0, 2, 2])
            assert boxes["cat"] == (pytest.approx(row[1], rel=1e-6), [0, 1, 2, 3])
    rest = results[len(segmenters) + len(detectors) :]
    for model, result in zip(sounds, rest, strict=False):
        (expected,) = outputs_of(model, SOUNDS)
        np.testing.assert_allclose(scores_of(result), expected[:, 0], rtol=1e-6)
        assert {name for _, name, _ in result[0][0]} == set(ANIMALS)
    ids = np.array([[1, 3, 5, 0, 0, 0], [1, 2, 4, 5, 0, 0]], np.int32)
    (expected,) = outputs_of(texts[0], ids)
    np.testing.assert_allclose(scores_of(rest[len(sounds)]), expected[:, 0], rtol=1e-6)


IO_TYPES = ("int8", "uint8", "float32")
IMAGES = [
    *(("image_classifier", described(classifier(*types))) for types in itertools.product(IO_TYPES, repeat=2)),
    ("image_classifier", described(classifier("int32"))),
    ("image_classifier", described(classifier(shape=(1, 4, 4, 1)))),
    ("image_classifier", described(classifier(shape=(1, 4, 4, 4)), kinds={"x": "image"})),
    ("image_classifier", described(classifier(shape=(2, 4, 4, 3)))),
    ("image_classifier", described(classifier(shape=(1, 3, 4, 4)))),
    ("image_classifier", described(classifier(inputs=2))),
    ("image_classifier", described(classifier(), kinds={"x": "plain"})),
    ("image_classifier", with_model_metadata(classifier(), ModelDescription(labels=ANIMALS))),
    ("image_classifier", classifier()),
    ("image_classifier", described(classifier(output_shape=(1, 1, 1, 3)))),
    ("image_classifier", described(classifier(output_shape=(3,)))),
    *(("image_segmenter", described(segmenter(*types))) for types in (("int8", "int8"), ("float32", "float32"))),
    *(("object_detector", detecting(detector(dtype))) for dtype in ("int8", "float32")),
    ("object_detector", detecting(detector(scores="int8"))),
    ("object_detector", described(detector(), labels=())),
    ("object_detector", described(detector(outputs=3), labels=())),
    ("object_detector", detector()),
]  # fmt: skip
OTHERS = [
    *(("audio_classifier", hearing(classifier(dtype, shape=(1, 160)))) for dtype in ("int8", "uint8", "float32")),
    *(("audio_classifier", hearing(classifier(shape=shape))) for shape in ((160,), (1, 160, 1), (2, 160))),
    ("audio_classifier", hearing(classifier(scores="int8", shape=(1, 160)))),
    ("audio_classifier", hearing(classifier(shape=(1, 160), inputs=2))),
    ("audio_classifier", with_model_metadata(classifier(shape=(1, 160)), ModelDescription(labels=ANIMALS))),
    ("audio_classifier", classifier(shape=(1, 160))),
    *(("text_classifier", reading(reader_of_text(dtype))) for dtype in ("int32", "int64", "float32")),
    *(("text_classifier", reading(reader_of_text(shape=shape))) for shape in ((6,), (2, 6))),
    ("text_classifier", reading(reader_of_text(scores="int8"))),
    ("text_classifier", reading(reader_of_text(), tokenizer="wordpiece", vocabulary=PIECES)),
    ("text_classifier", reading(reader_of_text(inputs=2))),
    ("text_classifier", reading(reader_of_text(inputs=3))),
    ("text_classifier", reading(reader_of_text(inputs=3), tokenizer="wordpiece", vocabulary=PIECES)),
    ("text_classifier", reader_of_text()),
]


def with_normalization(mean, std) -> bytes:
    unit = md.ProcessUnit(options=md.NormalizationOptions(mean=mean, std=std))
    main = SubGraphMetadata(input_tensor_metadata=(TensorMetadata(process_units=(unit,)),))
    return tflite.write_model_metadata(described(classifier()), ModelMetadata(subgraph_metadata=(main,)))


NORMALIZATIONS = [
    ("image_classifier", with_normalization(*values))
    for values in (
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        ((0.0, 1.0, 0.0), (255.0, 255.0, 255.0)),
        ((0.0, 0.0), (255.0, 255.0)),
        ((0.0,), (255.0, 255.0, 255.0)),
        ((0.0,), (0.0,)),
        ((255.0,), (-255.0,)),
    )
]


def test_mediapipe_refuses_what_tfq_refuses(tmp_path):
    inputs = {"audio_classifier": SOUNDS, "text_classifier": TEXTS}
    cases = [*IMAGES, *OTHERS, *NORMALIZATIONS]
    outcomes = run_tasks(tmp_path, [(task, model, inputs.get(task, PICTURES)) for task, model in cases])
    agreed = {True: 0, False: 0}
    for (task, model), outcome in zip(cases, outcomes, strict=True):
        table = io_table(model)
        problems = mediapipe_problems(table, table.metadata or ModelMetadata(), task)
        is_refused = any(problem.refused for problem in problems)
        assert is_refused == ("error" in outcome), (task, table.to_text(), problems, outcome.get("error"))
        assert all(problem.reason and problem.advice for problem in problems)
        agreed[is_refused] += 1
    assert min(agreed.values()) > 10
    assert {task for task, _ in cases} == {task.name for task in TASKS}


def test_conversion_that_tfq_advises_runs(tmp_path):
    """A refused int8 file, and the uint8 file that the advice leads to."""
    refused, advised = described(classifier("int8", "int8")), described(classifier("uint8", "uint8"))
    problems = mediapipe_problems(io_table(refused), io_table(refused).metadata, "image_classifier")
    assert {word for problem in problems for word in problem.advice.replace(",", "").split() if "=" in word} == {
        "conversion.inference_input_type=uint8",
        "conversion.inference_output_type=uint8",
    }
    results = run_tasks(tmp_path, [("image_classifier", model, PICTURES) for model in (refused, advised)])
    assert [list(result) for result in results] == [["error"], ["results"]]


def as_object_api(table, enums: dict[str, tuple[str, ...]]):
    """Return a table of tfq as the attributes of MediaPipe's object API: camel case, numbers of enums, None."""
    results = {}
    for name, value in vars(table).items():
        words = name.replace("sentence_piece_model", "sentencePiece_model").split("_")
        key = words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])
        if name in ("options", "content_properties"):
            results[f"{key}Type"] = enums[name].index(type(value).__name__) + 1 if value is not None else 0
        if isinstance(value, tuple):
            value = [as_object_api(item, enums) if hasattr(item, "__dict__") else item for item in value] or None
        elif isinstance(value, bytes):
            value = list(value)
        elif isinstance(value, str):
            owner = type(table).__name__
            value = enums[owner, name].index(value) if (owner, name) in enums else value or None
        elif hasattr(value, "__dict__"):
            value = as_object_api(value, enums)
        if name != "losses":
            results[key] = value
    return results


def test_mediapipe_reads_every_field_that_tfq_writes(tmp_path):
    from unit.test_tflite_model_metadata import EVERYTHING

    enums = {
        "options": [unit.__name__ for unit in md.ProcessUnitOptions.__args__],
        "content_properties": [kind.__name__ for kind in md.ContentProperties.__args__],
        ("AssociatedFile", "type"): (*md.FILE_TYPES, *[""] * 70, "VALUE_77"),
        ("ImageProperties", "color_space"): md.COLOR_SPACES,
        ("BoundingBoxProperties", "type"): md.BOX_TYPES,
        ("BoundingBoxProperties", "coordinate_type"): md.COORDINATE_TYPES,
        ("ScoreCalibrationOptions", "score_transformation"): md.SCORE_TRANSFORMATIONS,
    }
    model = tflite.edit_model(classifier(), entries={md.TFLITE_METADATA: tflite.encode_model_metadata(EVERYTHING)})
    (outcome,) = run_tasks(tmp_path, [("metadata", model, None)])
    expected = as_object_api(tflite.read_model_metadata(model), enums)
    assert outcome["results"] == json.loads(json.dumps(expected))
