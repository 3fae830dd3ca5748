# SPDX-License-Identifier: Apache-2.0
"""Calibration and techniques in conversions to int8: from a float .tflite, in Python and by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from messages import refused, warned
from sklearn.datasets import load_digits

import tfq
from tfq import tflite
from tfq.__main__ import main
from tfq.backends import LocalBackend, RunRequest
from tfq.compression import m_by_n_groups_in_flatbuffer
from tfq.conversion import convert_with_record
from tfq.keras_bridge import import_tf_keras

FLOATING = Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite"
IMAGES = load_digits().images[..., None].astype(np.float32)


def config(**values) -> tfq.ConversionConfig:
    calibration = tfq.CalibrationConfig(**values.pop("calibration", {}))
    return tfq.ConversionConfig(calibration=calibration, num_calibration_samples=64, **values)


def answers(model: bytes) -> np.ndarray:
    inputs = IMAGES if tfq.audit(model).scheme == "float32" else np.clip(np.rint(IMAGES / (16 / 255)) - 128, -128, 127)
    dtype = np.float32 if tfq.audit(model).scheme == "float32" else np.int8
    (output,) = LocalBackend().assess(RunRequest(model=model, inputs=(inputs.astype(dtype),))).outputs
    return output.argmax(axis=1)


@pytest.mark.parametrize("method", ["min_max", "moving_average", "percentile", "mse", "entropy"])
def test_every_method_ends_in_full_int8_that_answers_as_float_does(method):
    result = convert_with_record(FLOATING.read_bytes(), IMAGES, config(calibration={"method": method}))
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert {item.method for item in result.ranges.tensors.values()} == {method}
    assert (answers(result.content) == answers(FLOATING.read_bytes())).mean() > 0.97


@pytest.mark.parametrize(
    "techniques",
    [
        ("cross_layer_equalization",),
        ("bias_absorption",),
        ("gptq",),
        ("bias_correction",),
        ("bias_correction", "gptq", "bias_absorption", "cross_layer_equalization"),
    ],
)
def test_every_technique_ends_in_full_int8_and_records_what_it_did(techniques):
    result = convert_with_record(FLOATING.read_bytes(), IMAGES, config(techniques=techniques))
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert set(result.techniques) == set(techniques)
    assert all(
        record["layers" if name in ("gptq", "bias_correction") else "skipped"]
        for name, record in result.techniques.items()
    )
    assert (answers(result.content) == answers(FLOATING.read_bytes())).mean() > 0.98


def test_one_shot_pruning_leaves_two_zeros_in_four_in_a_working_int8_file():
    settings = {"techniques": ("one_shot_pruning", "gptq"), "sparsity_m_by_n": (2, 4)}
    result = convert_with_record(FLOATING.read_bytes(), IMAGES, config(**settings))
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert set(m_by_n_groups_in_flatbuffer(result.content, 2, 4).values()) == {1.0}
    layers = result.techniques["one_shot_pruning"]["layers"]
    assert all(record["after"] <= record["before"] + 1e-9 for record in layers.values())
    assert layers["logits"]["zeros"] == 0.5
    assert (answers(result.content) == answers(FLOATING.read_bytes())).mean() > 0.9


def test_a_layer_may_have_a_separate_method():
    calibration = {"tensors": ("conv2=mse",)}
    ranges = convert_with_record(FLOATING.read_bytes(), IMAGES, config(calibration=calibration)).ranges
    assert {item.layer for item in ranges.tensors.values() if item.method == "mse"} == {"conv2"}


def test_one_wrong_sample_in_hundreds_is_left_out_and_named():
    wrong = IMAGES[:200].copy()
    wrong[41] *= 255  # as if it had not been scaled
    settings = {"num_calibration_samples": 200, "calibration": tfq.CalibrationConfig(method="percentile")}
    with warned("41"):
        result = tfq.convert(FLOATING.read_bytes(), wrong, tfq.ConversionConfig(**settings))
    agreement = (answers(result) == answers(FLOATING.read_bytes())).mean()
    extremes = tfq.ConversionConfig(**{**settings, "calibration": tfq.CalibrationConfig(method="min_max")})
    damaged = tfq.convert(FLOATING.read_bytes(), wrong, extremes)
    image = tflite.read(result).main_subgraph.input_tensors[0]
    assert image.scale[0] == pytest.approx(16 / 255, rel=0.02)
    assert tflite.read(damaged).main_subgraph.input_tensors[0].scale[0] > 10 * image.scale[0]
    assert agreement > 0.97


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_range", "int16x8"])
def test_repairs_of_other_schemes_are_refused(scheme):
    with refused(tfq.InputError, field="conversion.techniques", got=("bias_correction",), word=scheme):
        tfq.convert(FLOATING.read_bytes(), IMAGES, config(scheme=scheme, techniques=("bias_correction",)))


def test_repairs_of_a_trained_model_are_refused():
    keras = import_tf_keras()
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3, name="head")(image))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)

    def fit(quantized, callbacks):
        quantized.compile("adam", "mse")
        quantized.fit(x, np.zeros((32, 3)), verbose=0, callbacks=callbacks)

    trained = tfq.qat(model, fit, calibration=x)
    with refused(tfq.InputError, field="conversion.techniques", got=("bias_correction",), word="quantization-aware"):
        tfq.convert(trained, x, config(techniques=("bias_correction",)))


@pytest.mark.parametrize("techniques", [(), ("gptq", "bias_correction")])
def test_the_audit_accepts_exactly_the_layers_requested_as_float(techniques):
    result = tfq.convert(FLOATING.read_bytes(), IMAGES, config(float_layers=("conv2", "log*"), techniques=techniques))
    kinds = {op.keras_layer: op for op in tflite.read(result).main_subgraph.ops}
    tensors = tflite.read(result).main_subgraph.tensors
    assert {name for name, op in kinds.items() if name and tensors[op.outputs[0]].dtype == "float32"} >= {
        "conv2",
        "logits",
    }
    assert all(tensors[kinds[name].outputs[0]].dtype == "int8" for name in ("conv1", "depthwise", "pointwise"))
    audit = tfq.AuditConfig(require="full_int8", allow_float=("conv2", "logits"))
    assert tfq.audit(result, audit).ok and not tfq.audit(result, tfq.AuditConfig(require="full_int8")).ok
    assert not tfq.audit(result, tfq.AuditConfig(require="full_int8", allow_float=("conv2",))).ok


def test_float_layers_that_are_not_there_are_refused():
    with refused(tfq.InputError, field="conversion.float_layers", got="cnv2", word="'conv2'"):
        tfq.convert(FLOATING.read_bytes(), IMAGES, config(float_layers=("cnv2",)))
    with refused(tfq.InputError, field="conversion.float_layers", got=("conv2",), word="int16x8"):
        tfq.convert(FLOATING.read_bytes(), IMAGES, config(float_layers=("conv2",), scheme="int16x8"))


@pytest.mark.parametrize("techniques", [(), ("gptq", "bias_correction")])
def test_four_bit_weights_predict_as_float_in_half_the_space(techniques):
    result = convert_with_record(FLOATING.read_bytes(), IMAGES, config(int4_layers=("*",), techniques=techniques))
    plain = tfq.convert(FLOATING.read_bytes(), IMAGES, config())
    assert tfq.audit(result.content).scheme == "int4_weights"
    weights = [tensor for tensor in tflite.read(result.content).main_subgraph.tensors if tensor.dtype == "int4"]
    assert len(weights) == 5
    assert sum(tensor.buffer_bytes for tensor in weights) == sum(-(-np.prod(tensor.shape) // 2) for tensor in weights)
    assert len(result.content) < len(plain)
    assert (answers(result.content) == answers(FLOATING.read_bytes())).mean() > (0.96 if techniques else 0.9)


@pytest.mark.parametrize("patterns", [("conv2",), ("conv*", "!conv1")])
def test_only_the_layers_that_are_named_get_four_bits(patterns):
    result = tfq.convert(FLOATING.read_bytes(), IMAGES, config(int4_layers=patterns))
    graph = tflite.read(result).main_subgraph
    narrow = [op.keras_layer for op in graph.ops if "int4" in {graph.tensors[index].dtype for index in op.inputs}]
    assert narrow == ["conv2"]
    with refused(tfq.InputError, field="conversion.int4_layers", got="cnv2"):
        tfq.convert(FLOATING.read_bytes(), IMAGES, config(int4_layers=("cnv2",)))


def script(*arguments):
    with pytest.raises(SystemExit) as ended:
        main_with(*arguments)
    return ended.value.code


def main_with(*arguments):
    import sys

    before, sys.argv = sys.argv, ["tfq", *arguments]
    try:
        main()
    finally:
        sys.argv = before


def test_saved_ranges_give_the_same_model_without_data(tmp_path, capfd):
    first = ["convert", f"--model={FLOATING}", "--data=digits", f"--out={tmp_path / 'one'}", "--calibration.method=mse"]
    assert script(*first, "--techniques=cross_layer_equalization") == 0
    record = json.loads((tmp_path / "one" / "convert.json").read_text())
    assert record["techniques"]["cross_layer_equalization"]["difference"] == 0
    assert script(*first[:3], f"--out={tmp_path / 'plain'}", "--calibration.method=mse") == 0
    ranges = tmp_path / "plain" / "digits_float32_int8_ranges.json"
    assert (
        script(
            "convert",
            f"--model={FLOATING}",
            "--data=npz:missing.npz",
            f"--out={tmp_path / 'two'}",
            f"--calibration.ranges={ranges}",
        )
        == 0
    )
    assert "warning: missing.npz" in capfd.readouterr().err
    again = (tmp_path / "two" / "digits_float32_int8.tflite").read_bytes()
    plain = (tmp_path / "plain" / "digits_float32_int8.tflite").read_bytes()
    # The record of its preprocessing has other --data flags, but it computes the same.
    np.testing.assert_array_equal(answers(again), answers(plain))


def test_ranges_of_another_model_are_refused_by_the_script(tmp_path, capsys):
    (tmp_path / "ranges.json").write_text("{}")
    code = script(
        "convert",
        f"--model={FLOATING}",
        "--data=digits",
        f"--out={tmp_path}",
        f"--calibration.ranges={tmp_path / 'ranges.json'}",
    )
    assert code == 2 and "calibrated" in capsys.readouterr().err


def test_analyze_prints_one_line_per_layer(tmp_path, capsys):
    model = tmp_path / "int8.tflite"
    model.write_bytes(tfq.convert(FLOATING.read_bytes(), IMAGES, config()))
    arguments = ["analyze", f"--model={model}", f"--reference={FLOATING}", "--data=digits", f"--out={tmp_path}"]
    assert script(*arguments, "--sensitivity") == 0
    message = capsys.readouterr().out
    assert "conv2" in message and "alone dB  " in message
    record = json.loads((tmp_path / "analyze.json").read_text())
    numbers = [item["op_index"] for item in record["ops"]]
    assert numbers == [None, *range(9)] and len(record["sensitivity"]) == 9  # None: the input
    assert script(*arguments[:2], "--data=digits") == 2
    assert "--reference" in capsys.readouterr().err
