# SPDX-License-Identifier: Apache-2.0
"""A file with two signatures over two subgraphs: each is calibrated with its own data and runs in int8."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from messages import refused, warned
from sklearn.datasets import load_digits

import tfq
from tfq import tflite
from tfq.conversion import convert_with_record

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
IMAGES = load_digits().images[:64, ..., None].astype(np.float32)
VECTORS = np.random.default_rng(0).normal(5, 30, (64, 8, 8, 1)).cumsum(1).astype(np.float32)


def named(name: str, key: str) -> bytes:
    """Return a golden file with one signature."""
    content = (GOLDEN / f"{name}.tflite").read_bytes()
    edited = tflite.unpack(content)
    edited.signatureDefs = []
    content = tflite.pack(edited, len(content))
    graph = tflite.read(content).main_subgraph
    inputs = {f"{key}_in": graph.inputs[0]}
    return tflite.add_signature(content, inputs, {f"{key}_out": graph.outputs[0]}, key=key)


@pytest.fixture(scope="module")
def floating() -> bytes:
    """Return the digits' network twice, the second time without its softmax."""
    second = tflite.unpack(named("digits_float32", "logits"))
    graph = second.subgraphs[0]
    graph.outputs = [graph.operators[-1].inputs[0]]
    graph.operators = graph.operators[:-1]
    second.signatureDefs[0].outputs[0].tensorIndex = int(graph.outputs[0])
    return tflite.merge_subgraphs([named("digits_float32", "classes"), tflite.pack(second, 20_000)])


DATA = {"classes": IMAGES, "logits": VECTORS}


def converted(model: bytes, data=DATA, **values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert_with_record(model, data, tfq.ConversionConfig(**{"num_calibration_samples": 64, **values}))


def outputs(model: bytes, key: str, samples: np.ndarray) -> np.ndarray:
    """Return real values of a signature's output, by the runtime's own signature runner."""
    runner = Interpreter(model_content=model).get_signature_runner(key)
    (inputs,), (result,) = runner.get_input_details().values(), runner.get_output_details().values()
    results = []
    for sample in samples:
        values = sample[None]
        if inputs["dtype"] != np.float32:
            scale, zero = inputs["quantization"]
            limits = np.iinfo(inputs["dtype"])
            values = np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(inputs["dtype"])
        answer = runner(**{f"{key}_in": values})[f"{key}_out"].astype(np.float64)
        scale, zero = result["quantization"]
        results.append((answer - zero) * scale if scale else answer)
    return np.concatenate(results)


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((expected**2).mean() / ((got - expected) ** 2).mean()))


def test_a_merged_file_computes_as_its_parts_and_shares_constants(floating):
    alone = outputs(named("digits_float32", "classes"), "classes", IMAGES)
    np.testing.assert_array_equal(outputs(floating, "classes", IMAGES), alone)
    scores = outputs(floating, "logits", IMAGES)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), alone, atol=1e-5)
    assert len(floating) < 1.4 * len(named("digits_float32", "classes"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"scheme": "int16x8"}, {"quantizer": "litert"}, {"techniques": ("gptq", "bias_correction")}],
    ids=["int8", "int16x8", "litert", "techniques"],
)
def test_each_signature_is_quantized_with_its_own_data(floating, settings):
    result = converted(floating, **settings)
    scheme = settings.get("scheme", "int8")
    report = tfq.audit(result.content, tfq.AuditConfig(require=scheme if scheme != "int8" else "full_int8"))
    assert report.ok and report.subgraphs == 2
    for key, samples in DATA.items():
        expected, got = (outputs(model, key, samples) for model in (floating, result.content))
        assert sqnr_db(expected, got) > 20, key
    inputs = [graph.input_tensors[0].scale[0] for graph in tflite.read(result.content).subgraphs]
    assert inputs[1] > 5 * inputs[0]


def test_few_bits_are_rounded_by_the_data_of_each_signature(floating):
    settings = {"scheme": "weight_only_int4", "verify": False}
    nearest, result = converted(floating, **settings), converted(floating, **settings, techniques=("gptq",))
    assert set(result.techniques) == set(DATA)
    for key, samples in DATA.items():
        expected, before, after = (
            outputs(model, key, samples) for model in (floating, nearest.content, result.content)
        )
        assert sqnr_db(expected, after) > sqnr_db(expected, before) + 1, key
    with refused(tfq.InputError, field="representative_dataset", got=("logits",), word="'classes'"):
        converted(floating, {"logits": VECTORS}, **settings, techniques=("gptq",))


def test_data_of_the_wrong_signature_would_have_been_seen(floating):
    result = converted(floating, {"classes": IMAGES, "logits": IMAGES})
    expected, got = (outputs(model, "logits", VECTORS) for model in (floating, result.content))
    assert sqnr_db(expected, got) < 15


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ({"logits": VECTORS}, ("logits",)),
        (IMAGES, "ndarray"),
        (lambda: [[image[None]] for image in IMAGES], "function"),
        ({**DATA, "other": IMAGES}, ("classes", "logits", "other")),
    ],
    ids=["one", "array", "function", "unknown"],
)
def test_data_that_does_not_name_each_signature_are_refused(floating, data, got):
    with refused(
        tfq.InputError, field="representative_dataset", expected=("classes", "logits"), got=got, word="'logits'"
    ):
        converted(floating, data)


def test_a_pattern_may_fit_a_layer_of_one_subgraph_alone(floating):
    config = tfq.ConversionConfig(float_layers=("op:1:0",))
    result = converted(floating, float_layers=config.float_layers)
    assert tfq.audit(result.content, tfq.AuditConfig().for_conversion(config)).ok
    first, second = (
        [op.name for op in graph.ops if op.name == "CONV_2D" and graph.tensors[op.outputs[0]].dtype == "float32"]
        for graph in tflite.read(result.content).subgraphs
    )
    assert (first, second) == ([], ["CONV_2D"])
    with refused(tfq.InputError, field="conversion.float_layers", got="nothing"):
        converted(floating, float_layers=("nothing",))


def test_an_exclusion_in_one_subgraph_selects_the_others_completely(floating):
    config = tfq.ConversionConfig(float_layers=("!op:1:0",))
    result = converted(floating, float_layers=config.float_layers)
    assert tfq.audit(result.content, tfq.AuditConfig().for_conversion(config)).ok
    first, second = (
        [graph.tensors[op.outputs[0]].dtype for op in graph.ops if op.name == "CONV_2D"]
        for graph in tflite.read(result.content).subgraphs
    )
    assert (set(first), second[0]) == ({"float32"}, "int8")


def test_schemes_without_ranges_convert_every_subgraph(floating):
    content = converted(floating, None, scheme="dynamic_range").content
    assert sqnr_db(outputs(floating, "logits", IMAGES), outputs(content, "logits", IMAGES)) > 20
    weights = {tensor.dtype for graph in tflite.read(content).subgraphs for tensor in graph.tensors if tensor.scale}
    assert weights == {"int8"}


def test_whatever_looks_at_the_main_subgraph_alone_says_so(floating):
    content = converted(floating).content
    notes = [item for item in tfq.audit(content).findings if item.kind == "several_signatures"]
    assert len(notes) == 1 and "'logits'" in notes[0].message
    labels = load_digits().target[:64]
    with warned("'logits'"):
        record = tfq.evaluate(
            content, tfq.Split(name="test", source="digits", inputs={"classes_in": IMAGES}, labels=labels)
        )
    assert any("'logits'" in sentence for sentence in record.warnings)
    with warned("'logits'"):
        tfq.analyze(content, floating, DATA)
    with warned("'logits'"), refused(tfq.InputError, field="representative_dataset", got=("logits",)):
        tfq.analyze(content, floating, {"logits": VECTORS})
    with warned("'logits'"):
        tfq.benchmark({"digits": content}, config=tfq.BenchmarkConfig(num_runs=2, warmup_runs=1, min_secs=0.0))


def test_a_file_with_one_subgraph_has_no_such_note():
    findings = tfq.audit(named("digits_float32", "classes"), tfq.AuditConfig(require="float32")).findings
    assert "several_signatures" not in {finding.kind for finding in findings}


@pytest.mark.parametrize(
    "settings", [{}, {"scheme": "int16x8"}, {"quantizer": "litert"}], ids=["int8", "int16x8", "litert"]
)
def test_two_signatures_of_one_subgraph_are_both_kept(settings):
    content = named("digits_float32", "first")
    graph = tflite.read(content).main_subgraph
    both = tflite.add_signature(content, {"second_in": graph.inputs[0]}, {"second_out": graph.outputs[0]}, key="second")
    built = converted(both, IMAGES, **settings).content
    results = [outputs(built, key, IMAGES[:8]) for key in ("first", "second")]
    np.testing.assert_array_equal(*results)
    assert sqnr_db(outputs(both, "second", IMAGES[:8]), results[1]) > 15


def test_one_signature_can_be_chosen(floating):
    content = converted(floating, VECTORS, signature="logits").content
    (signature,) = tflite.read(content).signatures
    assert (signature.key, signature.subgraph, len(tflite.read(content).subgraphs)) == ("logits", 0, 1)
    expected = converted(floating).content
    np.testing.assert_array_equal(outputs(content, "logits", VECTORS[:4]), outputs(expected, "logits", VECTORS[:4]))
    assert converted(floating, {"logits": VECTORS}, signature="logits").content == content
    with refused(tfq.InputError, field="conversion.signature", expected=("classes", "logits"), got="scores"):
        converted(floating, VECTORS, signature="scores")
