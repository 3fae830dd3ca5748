# SPDX-License-Identifier: Apache-2.0
"""Accuracy by bit width: the simulation compared with the interpreter and TFLite's int8, and the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from messages import refused
from sklearn.datasets import load_digits

import tfq
from tfq import tflite
from tfq.__main__ import main
from tfq.analysis import with_few_bits
from tfq.errors import InputError
from tfq.ptq.calibration import observe
from tfq.search import accuracy_by_bit_widths
from tfq.store import StageStore

PATH = Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite"
FLOATING = PATH.read_bytes()
IMAGES = load_digits().images[..., None].astype(np.float32)
SEEN = observe(FLOATING, [{"image": image[None]} for image in IMAGES[:200]])
SPLITS = [tfq.load_split(tfq.DataConfig(source="digits"), split) for split in ("train", "test")]


def outputs_of(model: bytes, layer: str) -> np.ndarray:
    """Return what readers of a layer receive for 32 images, by the reference kernels."""
    graph = tflite.read(model).main_subgraph
    (output,) = (op.outputs[0] for op in graph.ops if op.keras_layer == layer and op.name.startswith(("CONV", "DEPTH")))
    name = f"tfq/rounded_{output}"
    expected = next((tensor.index for tensor in graph.tensors if tensor.name == name), output)
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    results = []
    for image in IMAGES[200:232]:
        interpreter.set_tensor(details["index"], image[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(expected).copy())
    return np.concatenate(results)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_activations_have_no_more_values_than_their_bits(bits):
    model = with_few_bits(FLOATING, SEEN, activation_bits=bits)
    for layer in ("conv1", "depthwise", "conv2"):
        values = np.unique(outputs_of(model, layer))
        assert 2 <= values.size <= 2**bits
        if values.size > 2:
            steps = np.diff(values) / np.diff(values).min()
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_layers_that_are_kept_hold_what_they_held():
    model = with_few_bits(FLOATING, SEEN, weight_bits=2, activation_bits=2, keep=("conv1",))
    np.testing.assert_array_equal(outputs_of(model, "conv1"), outputs_of(FLOATING, "conv1"))
    assert not np.array_equal(outputs_of(model, "depthwise"), outputs_of(FLOATING, "depthwise"))
    with refused(InputError, field="analysis.bit_widths.keep", got="cnv1"):
        with_few_bits(FLOATING, SEEN, weight_bits=2, keep=("cnv1",))


def test_eight_bits_simulated_are_as_accurate_as_int8_and_fewer_lose(tmp_path):
    config = tfq.BitWidthsConfig(weights=(8, 2), activations=(8, 2), grids=("uniform",))
    result = accuracy_by_bit_widths(FLOATING, *SPLITS, config, store=StageStore(tmp_path))
    by_name = {item.name: item for item in result.ways}
    assert list(by_name) == [
        "W8, uniform",
        "W2, uniform",
        "A8",
        "A2",
        "W8 A8, uniform",
        "W2 A2, uniform",
        "W2 A8, uniform",
    ]
    real = tfq.evaluate(tfq.convert(FLOATING, SPLITS[0]), SPLITS[1], tfq.EvaluationConfig(num_runs=0)).accuracy
    assert by_name["W8 A8, uniform"].accuracy == pytest.approx(real, abs=0.01)
    assert by_name["W8 A8, uniform"].runs_as == "conversion.scheme=int8"
    assert by_name["W2, uniform"].runs_as == "conversion.scheme=weight_only_int2"
    assert by_name["W2 A8, uniform"].runs_as == by_name["A2"].runs_as == "simulated"
    assert by_name["W2 A2, uniform"].accuracy < by_name["W2, uniform"].accuracy < result.float_accuracy - 0.1


def test_int8_is_refused_and_examples_without_labels_are_compared_with_float(tmp_path):
    with refused(InputError, field="model", expected="float32"):
        accuracy_by_bit_widths(tfq.convert(FLOATING, SPLITS[0]), *SPLITS, store=StageStore(tmp_path))
    bare = tfq.load_split(tfq.DataConfig(source="digits"), "test")
    object.__setattr__(bare, "labels", None)
    config = tfq.BitWidthsConfig(weights=(8, 1), activations=(), grids=("uniform",))
    with pytest.warns(tfq.TfqWarning, match="labels"):
        result = accuracy_by_bit_widths(FLOATING, SPLITS[0], bare, config, store=StageStore(tmp_path))
    assert result.criterion.kind == "agreement" and result.float_accuracy == 1
    eight, one = (way.accuracy for way in result.ways)
    assert one < 0.6 < 0.97 < eight


def test_the_command_writes_record_and_page_and_resumes(tmp_path, monkeypatch, capfd):
    flags = [f"--model={PATH}", "--data=digits", f"--out={tmp_path}", "--bit_widths", "--bit_widths.weights=4,1"]
    flags += ["--bit_widths.activations=4"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["tfq", "analyze", *flags, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert run("--bit_widths.grids=uniform,kmeans") == 0
    message = capfd.readouterr()
    record = json.loads((tmp_path / "analyze.json").read_text())["bit_widths"]
    assert {way["grid"] for way in record["ways"]} == {"uniform", "kmeans"} and "W4 A4, uniform" in message.err
    page = (tmp_path / "analyze.html").read_text()
    assert page.count("<svg") == 2 and "kmeans" in page and "simulated" in page
    monkeypatch.setattr("tfq.search.bit_widths.with_few_bits", None)  # nothing is computed again
    assert run("--bit_widths.grids=uniform,kmeans") == 0
    assert json.loads((tmp_path / "analyze.json").read_text())["bit_widths"]["ways"] == record["ways"]
    assert run("--bit_widths.grids=octal") == 2
