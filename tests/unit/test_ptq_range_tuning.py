# SPDX-License-Identifier: Apache-2.0
"""Range tuning. Oracles: the interpreter on other samples, SciPy's divergence, ranges that are known to be wrong."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import golden
from messages import refused
from scipy.stats import entropy

import tfq
from tfq import ptq, quant_math, tflite
from tfq.conversion.convert import _prepared, convert_with_record
from tfq.conversion.quantize import _quantized, quantize_after_training
from tfq.errors import InputError
from tfq.ptq import range_tuning
from tfq.ptq.range_tuning import divergence
from tfq.store import StageStore, keeping_parts

FLOATING = golden("digits_float32")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (96, 8, 8, 1)).astype(np.float32)
SAMPLES, FRESH = [{"image": image[None]} for image in IMAGES[:48]], IMAGES[48:]
TUNED = tfq.ConversionConfig(techniques=("range_tuning",), num_calibration_samples=48, verify=False)


def probabilities(model):
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    parsed = tflite.read(model).main_subgraph
    results = []
    for image in FRESH:
        values = image[None]
        if source["dtype"] == np.int8:
            (tensor,) = parsed.input_tensors
            values = quant_math.quantize(values, tensor.scale[0], tensor.zero_point[0], "int8")
        interpreter.set_tensor(source["index"], values)
        interpreter.invoke()
        answer = interpreter.get_tensor(output["index"])[0]
        results.append((answer + 128.0) / 256 if answer.dtype == np.int8 else answer)
    return np.array(results) + 1 / 512


def file_divergence(model):
    return float(np.mean(entropy(probabilities(FLOATING), probabilities(model), axis=1)))


@pytest.fixture(scope="module")
def plain():
    return convert_with_record(FLOATING, IMAGES[:48], tfq.ConversionConfig(num_calibration_samples=48, verify=False))


@pytest.mark.parametrize("factor", [4.0, 0.4])
def test_ranges_that_are_too_wide_or_too_narrow_are_corrected(factor, plain):
    config = tfq.ConversionConfig()
    ranges, model = plain.ranges.values, _prepared(FLOATING, config)
    chosen = [key for key, item in plain.ranges.tensors.items() if item.layer == "conv2"]
    wrong = {key: tuple(factor * end for end in ends) if key in chosen else ends for key, ends in ranges.items()}
    result = ptq.tune_ranges(model, wrong, chosen, SAMPLES, lambda tried: _quantized(model, dict(tried), config))
    assert result.after < result.before and result.num_samples == 48 and result.factors.keys() == set(chosen)
    assert all((each < 1) == (factor > 1) for each in result.factors.values())
    contents = [_quantized(model, dict(ends), config) for ends in (wrong, result.ranges)]
    assert file_divergence(contents[1]) < 0.8 * file_divergence(contents[0])


def test_a_conversion_uses_and_records_the_tuned_ranges(plain, monkeypatch):
    monkeypatch.setattr(range_tuning, "_FACTORS", (0.8,))
    monkeypatch.setattr(range_tuning, "_PASSES", 1)
    result = convert_with_record(FLOATING, IMAGES[:48], TUNED)
    scales = {tensor.name: tensor.scale for tensor in tflite.read(result.content).main_subgraph.tensors}
    tuned = {item.name: item for item in result.ranges.tensors.values() if item.method == "tuned"}
    assert tuned and tuned.keys() == result.techniques["range_tuning"]["factors"].keys()
    before = {item.name: item for item in plain.ranges.tensors.values()}
    for name, item in tuned.items():
        assert item.maximum == pytest.approx(0.8 * before[name].maximum) and item.clipped is None
        if name in scales:
            assert scales[name][0] == pytest.approx((item.maximum - item.minimum) / 255, rel=0.01)
    config = dataclasses.replace(TUNED, verify=True)
    again = quantize_after_training(_prepared(FLOATING, config), IMAGES[:48], config)
    assert again.ranges.values == result.ranges.values
    # The verification measures remedies with the tuned ranges.
    assert again.evidence.quantize(config) == again.content


def test_changes_that_do_not_help_are_undone():
    ranges, sizes = {(0, 0): (-1.0, 1.0), (0, 1): (0.0, 2.0)}, []

    def quantize(tried):
        sizes.append(tried)
        return golden("digits_int8") if tried == ranges else golden("digits_int8_per_tensor")

    better = ptq.tune_ranges(golden("digits_int8"), ranges, [*ranges], SAMPLES[:4], quantize)
    assert better.ranges == ranges and better.factors == {} and better.before == better.after
    assert len(sizes) > len(ranges)


def test_the_divergence_of_probabilities_is_that_of_scipy_and_of_others_the_relative_error():
    rng = np.random.default_rng(1)
    floats, values = rng.dirichlet(np.ones(5), (2, 7))
    smoothed = entropy(floats + 1 / 512, values + 1 / 512, axis=1)
    assert divergence([values], [floats], [True]) == pytest.approx(smoothed.mean())
    others = rng.normal(size=(2, 7, 3))
    assert divergence([others[0]], [others[1]], [False]) == pytest.approx(
        ((others[0] - others[1]) ** 2).mean() / others[1].var()
    )


def test_range_of_a_constant_tensor_can_be_tuned():
    ranges = {(0, 0): (3.0, 3.0)}

    def quantize(tried):
        return golden("digits_int8_per_tensor" if tried == ranges else "digits_int8")

    result = ptq.tune_ranges(golden("digits_int8"), ranges, [*ranges], SAMPLES[:4], quantize)
    assert result.factors == {(0, 0): 0.8} and result.after < result.before


@pytest.mark.parametrize("classes", [10, 1000])
def test_certain_classes_have_no_divergence_however_many_there_are(classes):
    floats = np.eye(classes)[:8]
    stored = np.minimum(floats, 255 / 256)  # the largest int8 probability
    wrong = np.roll(stored, 1, axis=1)
    assert divergence([stored], [floats], [True]) < 1e-4 < 0.5 < divergence([wrong], [floats], [True])


def test_rounding_of_a_constant_output_does_not_outweigh_errors_of_others():
    floats, constant = np.random.default_rng(2).normal(size=(64, 3)), np.full((64, 1), 3.0)
    near, far = (
        divergence([floats + error, constant + rounding], [floats, constant], [False, False])
        for error, rounding in ((0.01, 1e-7), (0.5, 0.0))
    )
    assert near < far


@pytest.mark.parametrize("is_classes", [True, False])
def test_the_divergence_of_large_outputs_needs_memory_for_one_sample(is_classes):
    floats = np.random.default_rng(3).dirichlet(np.ones(8), (50, 1000)).astype(np.float32)
    tracemalloc.start()
    assert divergence([floats], [floats], [is_classes]) < 0.01
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < floats.nbytes


def test_no_samples_are_refused():
    with refused(InputError, field="samples"):
        ptq.tune_ranges(FLOATING, {}, [], [], lambda ranges: FLOATING)


def test_an_interrupted_tuning_resumes_at_the_tensor_that_was_interrupted(plain, monkeypatch, tmp_path):
    monkeypatch.setattr(range_tuning, "_FACTORS", (0.8,))
    config, quantizations = tfq.ConversionConfig(), []
    model, ranges = _prepared(FLOATING, config), plain.ranges.values
    chosen = [key for key, item in plain.ranges.tensors.items() if item.layer in ("conv1", "conv2")]
    wrong = {key: tuple(2.0 * end for end in ends) if key in chosen else ends for key, ends in ranges.items()}

    def tuned(most=100):
        def quantize(tried):
            if len(quantizations) == most:
                raise KeyboardInterrupt
            quantizations.append(tried)
            return _quantized(model, dict(tried), config)

        with keeping_parts(lambda: StageStore(tmp_path)):
            return ptq.tune_ranges(model, wrong, chosen, SAMPLES, quantize)

    expected, whole = tuned(), len(quantizations)
    quantizations.clear()
    with pytest.raises(KeyboardInterrupt):
        tuned(most=3)  # that of the present ranges, and two tensors
    assert tuned() == expected
    # The present ranges again, and the tensors that were not complete.
    assert len(quantizations) == 3 + 1 + (whole - 3)
