# SPDX-License-Identifier: Apache-2.0
"""The report of a conversion whose int8 model lost its information. Oracles: Keras and an interpreter."""

import warnings

import faulty_models
import numpy as np
import pytest

import tfq
from tfq.conversion import convert_with_record
from tfq.errors import TfqWarning, VerificationError


def converted(model, samples, **settings):
    """Return the conversion and the warnings of its verification."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = convert_with_record(model, samples, tfq.ConversionConfig(**settings))
    return result, [str(item.message) for item in caught if issubclass(item.category, TfqWarning)]


def interpreted(content: bytes, samples: np.ndarray) -> np.ndarray:
    """Return real values of the first output, by an interpreter that is fed here."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (fed,), (got, *_) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for sample in samples:
        scale, zero_point = fed["quantization"]
        value = sample[None]
        if scale:
            limits = np.iinfo(fed["dtype"])
            value = np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(fed["index"], value.astype(fed["dtype"]))
        interpreter.invoke()
        scale, zero_point = got["quantization"]
        value = interpreter.get_tensor(got["index"]).astype(np.float64)
        results.append((value - zero_point) * scale if scale else value)
    return np.concatenate(results)


def decibels(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(reference.var() / np.mean((reference - got) ** 2)))


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "tanh"])
def test_scores_that_a_join_with_boxes_makes_constant_are_named(keras, scores):
    model, samples = faulty_models.detector(keras, scores)
    result, messages = converted(model, samples)

    # Oracle: all scores have one value, although the complete output looks correct.
    floats, values = model.predict(samples, verbose=0), interpreted(result.content, samples)
    assert np.unique(values[..., 4:]).size == 1 and decibels(floats, values) > 30
    (problem,) = result.verification.collapsed
    assert (problem.kind, problem.cause) == ("constant_slices", "unequal_join")
    assert "CONCATENATION" in problem.op and any(problem.message == message for message in messages)
    assert {"conversion.scheme=int16x8", "conversion.scheme=dynamic_range"} < {
        item.setting for item in problem.remedies
    }


def test_measured_remedy_of_a_join_is_what_an_interpreter_computes(keras):
    model, samples = faulty_models.detector(keras)
    result, _ = converted(model, samples)

    (problem,) = result.verification.collapsed
    remedy = next(item for item in problem.remedies if item.setting == "conversion.scheme=int16x8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = tfq.convert(model, samples, tfq.ConversionConfig(scheme="int16x8"))
    values = interpreted(wide, samples)
    assert remedy.cures and np.unique(values[..., 4:]).size > 20
    assert remedy.sqnr_db == pytest.approx(decibels(model.predict(samples, verbose=0), values), abs=1.5)


@pytest.mark.parametrize("build", [faulty_models.mel_front_end, faulty_models.stft_front_end])
def test_spectrogram_front_end_is_named_with_its_measured_remedy(keras, build):
    model, samples = build(keras)
    result, _ = converted(model, samples)

    floats = model.predict(samples, verbose=0)
    assert decibels(floats, interpreted(result.content, samples)) < 20
    (problem,) = result.verification.collapsed
    assert (problem.layer, problem.cause) == ("front_end", "wide_dynamic_range")
    remedy = next(item for item in problem.remedies if "float_layers" in item.setting)
    assert remedy.cures and remedy.sqnr_db > 30
    in_float, messages = converted(model, samples, float_layers=("front_end",))
    assert in_float.verification.ok and not any("collapse" in message for message in messages)
    assert decibels(floats, interpreted(in_float.content, samples)) > 30


def test_input_of_many_scales_is_named_with_measured_remedies(keras):
    model, samples = faulty_models.tabular(keras)
    result, _ = converted(model, samples)

    assert decibels(model.predict(samples, verbose=0), interpreted(result.content, samples)) < 20
    (problem,) = result.verification.collapsed
    assert problem.cause == "mixed_input_scales" and "'x'" in problem.message
    cures = {item.setting for item in problem.remedies if item.cures}
    assert {"conversion.scheme=int16x8", "conversion.scheme=dynamic_range"} < cures


def test_small_value_of_a_regression_that_becomes_constant_is_named(keras):
    model, samples = faulty_models.small_output(keras)
    result, _ = converted(model, samples)

    values = interpreted(result.content, samples)
    assert np.unique(values[:, 2]).size == 1 and np.unique(values[:, 0]).size > 20
    (problem,) = result.verification.collapsed
    assert problem.kind == "constant_slices" and problem.layer in ("dense", "units")  # fused


def test_right_model_converts_without_a_warning(keras):
    model, samples = faulty_models.classifier(keras)
    result, messages = converted(model, samples, num_calibration_samples=len(samples))

    assert result.verification.ok and result.verification.num_samples == 20 and messages == []
    ratio = decibels(model.predict(samples, verbose=0), interpreted(result.content, samples))
    assert result.verification.outputs[0].sqnr_db == pytest.approx(ratio, abs=1.5)


def test_strict_makes_a_collapse_an_error(keras):
    model, samples = faulty_models.detector(keras)

    with pytest.raises(VerificationError) as caught:
        converted(model, samples, strict=True)

    assert caught.value.field == "conversion.strict" and caught.value.exit_code == 1


def test_switched_off_verification_says_nothing(keras):
    model, samples = faulty_models.detector(keras)
    result, messages = converted(model, samples, verify=False, num_calibration_samples=len(samples))

    assert result.verification is None and messages == []


def test_weights_alone_are_verified_on_given_examples(keras):
    model, samples = faulty_models.classifier(keras)

    result = convert_with_record(
        model, None, tfq.ConversionConfig(scheme="dynamic_range"), examples=samples
    ).verification
    without = convert_with_record(model, None, tfq.ConversionConfig(scheme="dynamic_range")).verification

    assert result.ok and result.outputs[0].sqnr_db > 30
    assert without.execution.state == "runs" and [item.kind for item in without.notes] == ["not_compared"]


def test_ranges_of_other_data_are_found(keras, tmp_path):
    """Ranges of a file that clip everything are detected with the samples that are passed along."""
    model, samples = faulty_models.classifier(keras)
    first, _ = converted(model, samples / 50)
    first.ranges.save(tmp_path / "ranges.json")

    calibration = tfq.CalibrationConfig(ranges=str(tmp_path / "ranges.json"))
    result, _ = converted(model, samples, calibration=calibration)

    (problem,) = result.verification.collapsed
    assert problem.kind == "low_sqnr"


def test_masked_log_softmax_is_not_a_collapse(keras):
    """Classes excluded by a mask have a logarithm of -1e9 in float, and of -16 in int8."""
    model, samples = faulty_models.masked_log_softmax(keras)
    result, messages = converted(model, samples, num_calibration_samples=len(samples))

    floats, values = model.predict(samples, verbose=0), interpreted(result.content, samples)
    allowed = floats > -16
    assert 0 < np.mean(allowed) < 1 and decibels(floats[allowed], values[allowed]) > 20
    assert result.verification.ok and messages == []
