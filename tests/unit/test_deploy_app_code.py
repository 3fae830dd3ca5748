# SPDX-License-Identifier: Apache-2.0
"""What sources for apps say about a model: types, tolerances, names, ops, and what platforms refuse."""

import dataclasses
import json
import re

import numpy as np
import pytest
from built_models import Call, T, build
from one_op_models import options

from tfq import registry, tflite
from tfq.auditing import Target, io_table
from tfq.backends import LocalBackend
from tfq.backends.tflm import TflmBackend
from tfq.deploy import app_code
from tfq.deploy.golden import GoldenVectors
from tfq.deploy.platform import BundleContents, Candidate, Platform
from tfq.deploy.platforms import ios, micro, web
from tfq.deploy.results import Results
from tfq.deploy.tflm_measurement import ARRAY_FILE, Measurement, array_bytes, large_differences
from tfq.errors import InputError, ModelError


def contents_of(model: bytes, tolerance=None, largest: float = 1.0, name: str = "name") -> BundleContents:
    """Return the contents of a bundle whose golden outputs are `largest`, without running the model."""
    parsed = tflite.read(model)
    files, example = {}, {"label": None, "inputs": [], "outputs": []}
    graph = parsed.main_subgraph
    for side, names, tensors in (
        ("inputs", parsed.input_names, graph.input_tensors),
        ("outputs", parsed.output_names, graph.output_tensors),
    ):
        for number, (tensor_name, tensor) in enumerate(zip(names, tensors, strict=True)):
            file, decoded = f"golden/{side}_{number}.bin", f"golden/{side}_{number}_decoded.bin"
            files[file] = np.zeros(tensor.shape, tensor.dtype).tobytes()
            files[decoded] = np.full(tensor.shape, largest, np.float32).tobytes()
            entry = {"name": tensor_name, "file": file, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            example[side].append({**entry, "source": entry, "decoded_file": decoded})
    document = {"examples": [example], "tolerance": tolerance or {}}
    return BundleContents(
        name=name,
        model=model,
        io=io_table(model).to_dict(),
        golden=GoldenVectors(document=document, files=files),
        labels=(),
        results=Results(),
        source_sha256="0" * 64,
        parsed=parsed,
    )


def candidate(model: bytes) -> Candidate:
    parsed = tflite.read(model)
    return Candidate(content=model, model=parsed, io=io_table(model).to_dict())


def problems(platform: str, model: bytes):
    return registry.get(Platform, platform).check(candidate(model))


@pytest.fixture
def model_of(golden):
    return lambda name: (golden / f"{name}.tflite").read_bytes()


def test_every_op_of_the_target_has_a_method_of_the_resolver(root):
    declared = (root / "tests/clients/declarations/tflm/tensorflow/lite/micro/ops.inc").read_text()
    methods = {f"Add{name}" for name in re.findall(r"OP\((\w+)\)", declared)}
    target = registry.get(Target, "tflm", field="target")
    ops = frozenset.union(*target.ops_by_type.values())
    assert {micro._method(tflite.Op(index=0, name=op, version=1, inputs=(), outputs=())) for op in ops} <= methods


def test_resolver_has_each_op_of_all_subgraphs_once(model_of):
    model = tflite.read(model_of("digits_int8"))
    methods = micro.op_methods(model)
    assert len(methods) == len({op.name for op in model.main_subgraph.ops}) < len(model.main_subgraph.ops)
    assert {"AddAveragePool2D", "AddDepthwiseConv2D", "AddFullyConnected"} < set(methods)


def test_flash_model_has_no_metadata_that_the_runtime_does_not_read(model_of):
    model = tflite.edit_model(
        model_of("digits_int8"), metadata={"scheme": "int8"}, entries={"OfflineMemoryAllocation": b"\1\0\0\0"}
    )
    kept = tflite.read(micro.flash_model(model))
    assert set(tflite.read(model).metadata) - set(kept.metadata) == {"tfq"}
    assert "OfflineMemoryAllocation" in kept.metadata
    assert kept.main_subgraph.ops == tflite.read(model).main_subgraph.ops


def test_arena_that_is_not_measured_stops_the_compiler(model_of, monkeypatch):
    monkeypatch.setattr(TflmBackend, "unavailable", lambda self: "not installed */")
    files = registry.get(Platform, "micro").sources(contents_of(model_of("digits_int8_per_tensor_dense")))
    text = files["micro/arena.h"].decode()
    assert "#error" in text and "not installed" in text and "#define MODEL_ARENA_BYTES" not in text
    assert text.count("*/") == text.count("/*")


@pytest.mark.parametrize(
    ("difference", "builtin", "warns"),
    [(60.0, 1, True), (60.0, 70, False), (8.0, 1, False), (np.inf, 1, True), (60.0, None, True)],
)
def test_difference_above_rounding_and_builtin_kernels_is_a_warning(model_of, monkeypatch, difference, builtin, warns):
    def run(self, model, samples, kernels):
        if builtin is None:
            raise ModelError("no kernel")
        return [(np.full((1, 10), builtin, np.int8),) for _ in samples]

    monkeypatch.setattr(LocalBackend, "run_samples", run)
    contents = contents_of(model_of("digits_int8_per_tensor_dense"))
    measured = Measurement(arena=1, differences=(difference,))
    usual = app_code.least_tolerances(contents)
    files = contents.golden.files
    warnings = large_differences(contents.model, contents.golden.document, files.__getitem__, measured, usual)
    assert len(warnings) == warns
    tolerance = micro._vectors(contents, measured)
    assert f"Type::kInt8, {1.0 if np.isinf(difference) else difference}f" in tolerance and "inff" not in tolerance


def test_arena_has_a_margin_and_is_aligned():
    assert micro.arena_with_margin(1000) == 2032
    assert micro.arena_with_margin(80_001) == 90_016


@pytest.mark.parametrize(
    "platform, name, advice",
    [
        ("web", "digits_int8", "inference_input_type=uint8"),
        ("web", "digits_int16x8", "inference_input_type=float32"),
        ("web", "digits_int8_dynamic_batch", "batch_size"),
        ("web", "argmax_int8", "int32"),
        ("micro", "digits_int8", "target=tflm"),
    ],
)
def test_platform_refuses_what_its_runtime_refuses(platform, name, advice, model_of):
    assert any(advice in problem.advice for problem in problems(platform, model_of(name)))


@pytest.mark.parametrize(
    "platform, names",
    [
        ("web", ["digits_int8_uint8_io", "digits_float32", "digits_int8_float_io", "digits_dynamic_range"]),
        ("micro", ["digits_int8_per_tensor_dense", "digits_float32"]),
        ("android", ["digits_int8_dynamic_batch", "digits_int16x8", "argmax_int8"]),
        ("ios", ["digits_int8_dynamic_batch", "digits_int16x8", "argmax_int8"]),
    ],
)
def test_platform_accepts_what_its_runtime_runs(platform, names, model_of):
    assert [problem for name in names for problem in problems(platform, model_of(name))] == []


def test_tolerance_is_the_largest_measured_difference_of_cpus(model_of):
    contents = contents_of(
        model_of("digits_int8"),
        {"qemu:a53": {"probabilities": {"quantized": 3}}, "ethos-u55-128": {"probabilities": {"quantized": 9}}},
    )
    assert app_code.tolerances(contents) == [3.0]


@pytest.mark.parametrize(("difference", "builtin", "warns"), [(60, 1, True), (60, 70, False), (8, 0, False)])
def test_large_recorded_difference_of_a_cpu_is_a_warning(model_of, difference, builtin, warns):
    (name,) = tflite.read(model_of("digits_int8")).output_names
    tolerance = {"qemu:x": {name: {"quantized": difference}}, "gpu": {name: {"quantized": 99}}}
    contents = contents_of(model_of("digits_int8"), tolerance)
    yardstick = {"outputs": [{"name": name, "max_abs_error_lsb": builtin}]}
    contents = dataclasses.replace(contents, results=Results(portability={"yardstick": yardstick}))
    warnings = app_code.large_recorded_differences(contents)
    assert len(warnings) == warns and all("qemu:x" in warning for warning in warnings)


def test_tolerance_without_a_measurement_is_a_step_of_the_output(model_of):
    assert app_code.tolerances(contents_of(model_of("digits_int8"))) == [1.0]
    assert app_code.tolerances(contents_of(model_of("digits_int8_float_io"))) == [2**-8]
    assert app_code.tolerances(contents_of(model_of("digits_float32"), largest=20.0)) == [pytest.approx(2e-3)]
    assert app_code.tolerances(contents_of(model_of("argmax_int8"))) == [0.0]
    # Ops with float inputs and int8 weights quantize their inputs; others dequantize their weights.
    assert app_code.tolerances(contents_of(model_of("digits_dynamic_range"), largest=10.0)) == [pytest.approx(0.2)]
    assert app_code.tolerances(contents_of(model_of("digits_weight_only_int8"), largest=10.0)) == [pytest.approx(1e-3)]


def test_unknown_preprocessing_step_is_refused(model_of):
    contents = contents_of(model_of("digits_int8"))
    contents.io["inputs"][0]["preprocessing"] = [{"step": "spectrogram", "formula": "STFT"}]
    with pytest.raises(InputError) as error:
        app_code.code_inputs(contents)
    assert error.value.got == "spectrogram"


def test_a_step_that_the_app_must_add_is_in_the_header(model_of):
    contents = contents_of(model_of("digits_int8"))
    contents.io["inputs"][0]["preprocessing"] = [{"step": "tokenize", "formula": "look the tokens up in vocab.txt"}]
    assert "vocab.txt" in "".join(app_code.header(contents, "Not tried."))


def test_names_cannot_end_a_comment_or_a_string(model_of):
    name = "a*/\"\\\n\u2028-->${x}'\\(1)"
    tensors = {name: T("float32", (1, 2)), "y": T("float32", (1, 2))}
    model = build(tensors, [Call("ABS", [name], ["y"], options("Abs"))], [name], ["y"])
    contents = contents_of(model, name=name)
    for platform in ("web", "android", "ios", "micro"):
        files = registry.get(Platform, platform).sources(contents)
        for path in [path for path in files if path.endswith((".js", ".kt", ".swift", ".c", ".h", ".cc"))]:
            text = files[path].decode()
            top = text.split("\n\n")[0]
            assert "\u2028" not in text and "\\" not in top, path
            assert top.startswith("//") or top.count("*/") == top.count("/*"), path
    # The literals mean the name: JSON and Python have the escapes of JavaScript and Swift.
    assert json.loads(f'"{web._string(name)[1:-1]}"'.replace("\\'", "'").replace('a*/"', 'a*/\\"')) == name
    swift = re.sub(r"\\u\{([0-9a-f]+)\}", lambda match: chr(int(match[1], 16)), ios.swift_string(name))
    assert swift == '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_sources_contain_the_quantization_of_all_inputs_and_outputs(model_of):
    contents = contents_of(model_of("digits_int8"))
    tensor = contents.parsed.main_subgraph.input_tensors[0]
    files = {}
    for platform in ("android", "ios"):
        files |= registry.get(Platform, platform).sources(contents)
    assert f"Quantization({np.float32(tensor.scale[0])!s}f, -128)" in files["android/Model.kt"].decode()
    assert f"Quantization(scale: {np.float32(tensor.scale[0])!s}, zeroPoint: -128)" in files["ios/Model.swift"].decode()
    changed = dataclasses.replace(contents, io=json.loads(json.dumps(contents.io)))
    changed.io["inputs"][0]["preprocessing"].insert(0, {"step": "normalize", "mean": [1.5, 2.0], "std": [0.5]})
    files = registry.get(Platform, "android").sources(changed)
    assert "mean = listOf(1.5f, 2.0f), std = listOf(0.5f)" in files["android/Model.kt"].decode()


def test_bytes_of_the_c_array_are_the_model(model_of):
    model = model_of("digits_int8_per_tensor_dense")
    files = registry.get(Platform, "micro").sources(contents_of(model))
    assert array_bytes(files[ARRAY_FILE].decode()) == micro.flash_model(model)


def test_a_file_name_that_is_not_utf8_does_not_stop_the_sources(model_of):
    contents = contents_of(model_of("digits_float32"), name="model_\udce9")
    for platform in ("web", "android", "ios"):
        assert any(b"model_?" in content for content in registry.get(Platform, platform).sources(contents).values())
