# SPDX-License-Identifier: Apache-2.0
"""Reconstruction: weights and biases chosen for the rounded inputs of each layer.

Oracles: least squares of NumPy on the patches themselves, and the interpreter on samples that were not used.
"""

import math
import os
import signal
import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden

import tfq
from tfq import ptq, quant_math, tflite
from tfq.ptq import gptq, reconstruction
from tfq.store import StageStore, keeping_parts

FLOATING, QUANTIZED = golden("digits_float32"), golden("digits_int8")
IMAGES = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1)).astype(np.float32)
SAMPLES, FRESH = [{"image": image[None]} for image in IMAGES[:60]], IMAGES[60:]
INT4 = ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES).model


def logits(model, images=FRESH):
    """Return the real values in front of the softmax, by the builtin kernels."""
    graph = tflite.read(model).main_subgraph
    (entry,), softmax = graph.input_tensors, graph.ops[-1]
    assert softmax.name == "SOFTMAX"
    interpreter = Interpreter(model_content=model, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    results, tensor = [], graph.tensors[softmax.inputs[0]]
    for image in images:
        array = image[None]
        if entry.is_quantized:
            array = quant_math.quantize(array, entry.scale[0], entry.zero_point[0])
        interpreter.set_tensor(entry.index, array)
        interpreter.invoke()
        results.append(interpreter.get_tensor(tensor.index))
    values = np.concatenate(results)
    return quant_math.dequantize(values, tensor.scale[0], tensor.zero_point[0]) if tensor.is_quantized else values


def error(model):
    return float(np.mean((logits(model) - logits(FLOATING)) ** 2))


def test_four_bit_weights_come_closer_to_float_on_other_samples():
    result = ptq.reconstruct(INT4, FLOATING, SAMPLES)
    assert error(result.model) < error(INT4)
    assert all(after <= before for before, after in result.layers.values())
    assert set(result.layers) == {"conv1", "depthwise", "pointwise", "conv2", "logits"} and not result.skipped


def test_the_number_formats_stay_as_they_are():
    before, after = (
        tflite.read(model).main_subgraph for model in (INT4, ptq.reconstruct(INT4, FLOATING, SAMPLES).model)
    )
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.shape, old.dtype, len(old.scale), old.zero_point) == (
            new.shape,
            new.dtype,
            len(new.scale),
            new.zero_point,
        )
    for op in after.ops:
        if op.name.endswith(("CONV_2D", "CONNECTED")):
            data, weights, bias = (after.tensors[index] for index in op.inputs)
            np.testing.assert_allclose(bias.scale, data.scale[0] * np.asarray(weights.scale), rtol=1e-5)


def test_a_layer_regresses_the_float_outputs_on_its_rounded_inputs():
    rng = np.random.default_rng(1)
    exact = rng.normal(size=(4000, 6))
    rounded = exact @ rng.normal(size=(6, 6)) * 0.1 + exact + 0.2 * rng.normal(size=(4000, 6))
    weights = rng.normal(size=(3, 6))
    gram, cross = rounded.T @ rounded / 4000, rounded.T @ (exact @ weights.T) / 4000
    expected = np.linalg.lstsq(rounded, exact @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(reconstruction._regressed(weights, gram, cross, 0.01), expected, atol=0.03)
    assert np.abs(weights - expected).max() > 0.1


def test_the_error_of_a_layer_is_the_mean_squared_error_of_its_outputs():
    rng = np.random.default_rng(2)
    rounded, outputs, weights = rng.normal(size=(50, 4)), rng.normal(size=(50, 2)), rng.normal(size=(2, 4))
    moments = reconstruction.LayerMoments.of(*(array[None].astype(np.float32) for array in (rounded, outputs)), None)
    for centered in (False, True):
        found = reconstruction._errors(weights, *(item[0] for item in moments.covariances(centered)))
        differences = outputs - rounded @ weights.T
        expected = differences.var(axis=0) if centered else (differences**2).mean(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_weights_of_zero_stay_zero_and_their_channels_are_not_regressed():
    def prune(model):
        tensor = model.subgraphs[0].tensors[place.inputs[1]]
        values = model.buffers[tensor.buffer].data.view(np.float32)
        model.buffers[tensor.buffer].data = (
            np.where(np.arange(len(values)) % 2, values, 0).astype(np.float32).view(np.uint8)
        )

    place = next(op for op in tflite.read(FLOATING).main_subgraph.ops if op.keras_layer == "conv2")
    floating = changed(FLOATING, prune)
    int4 = ptq.quantize_to_int4(QUANTIZED, floating, SAMPLES).model
    result = ptq.reconstruct(int4, floating, SAMPLES)
    edited, graph = tflite.unpack(result.model), tflite.read(result.model).main_subgraph
    op = next(op for op in graph.ops if op.keras_layer == "conv2")
    tensor = edited.subgraphs[0].tensors[op.inputs[1]]
    packed = np.asarray(edited.buffers[tensor.buffer].data).view(np.int8)
    assert not ((packed << 4).astype(np.int8)).any() and (packed >> 4).any()
    rows = np.array([[0.0, 1.0], [1.0, 1.0]])
    moved = reconstruction._regressed(rows, np.eye(2), np.full((2, 2), 0.5), 0.01)
    np.testing.assert_array_equal(moved[0], rows[0])
    assert not np.array_equal(moved[1], rows[1])


def halves_of(rounded, exact, weights):
    """Return the moments of the even and the odd rows, with the outputs of the exact inputs as targets."""
    parts = [(rounded[start::2], exact[start::2] @ weights.T) for start in (0, 1)]
    first, second = ([array[None].astype(np.float32) for array in part] for part in parts)
    moments = reconstruction.LayerMoments.of(*first, None)
    return moments, reconstruction.LayerMoments.of(*second, moments)


@pytest.mark.parametrize(("count", "is_systematic"), [(2000, True), (24, False)])
def test_cross_validation_chooses_a_regression_that_is_good_on_other_examples(count, is_systematic):
    rng = np.random.default_rng(3)
    weights, mixing = rng.normal(size=(4, 20)), rng.normal(size=(20, 20)) * 0.1

    def examples(number):
        exact = rng.normal(size=(number, 20))
        return exact + (exact @ mixing if is_systematic else rng.normal(size=exact.shape)), exact

    rounded, exact = examples(count)
    halves = halves_of(rounded, exact, weights)
    chosen = reconstruction._chosen_ridge(weights, halves, False)
    (gram,), (cross,), _ = (halves[0] + halves[1]).covariances(False)
    other, truth = examples(4000)

    def error(ridge):
        return np.mean((other @ reconstruction._regressed(weights, gram, cross, ridge).T - truth @ weights.T) ** 2)

    assert (chosen == 0.01) == is_systematic
    assert error(chosen) < error(math.inf if is_systematic else 0.01)


def test_one_sample_alone_corrects_nothing():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(1, 5, 3)).astype(np.float32)
    moments = reconstruction.LayerMoments.of(values, values[:, :, :2], None)
    assert reconstruction._chosen_ridge(rng.normal(size=(2, 3)), (moments,), False) == math.inf


def test_a_sample_with_huge_outputs_counts_as_much_as_four_usual_ones():
    _, layers, _ = gptq.pair_layers(QUANTIZED, FLOATING)
    samples = [{"image": np.full((1, 8, 8, 1), 5, np.float32)}] * 6 + [
        {"image": np.full((1, 8, 8, 1), 5e4, np.float32)}
    ]
    weights = reconstruction._weights(FLOATING, layers, samples)
    np.testing.assert_array_equal(weights[:-1], 1)
    interpreter = Interpreter(model_content=FLOATING, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    energies = []
    for sample in (samples[0], samples[-1]):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample["image"])
        interpreter.invoke()
        outputs = [interpreter.get_tensor(source.output).astype(float) for _, source in layers]
        energies.append([np.mean(array**2) for array in outputs])
    np.testing.assert_allclose(weights[-1] * energies[1], 4 * np.array(energies[0]), rtol=1e-5)


def test_a_weight_counts_a_sample_as_often():
    rng = np.random.default_rng(5)
    inputs, outputs = (rng.normal(size=(1, 4, size)).astype(np.float32) for size in (3, 2))
    moments = reconstruction.LayerMoments.of(inputs, outputs, None)
    for one, other in zip(moments.weighted(2).covariances(True), (moments + moments).covariances(True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose((moments.weighted(1e-6) + moments).mean_targets, moments.mean_targets, rtol=1e-12)


def test_only_the_first_layer_of_a_pass_corrects_errors_of_earlier_layers():
    pair, (_, layers, _) = ptq.layer_pairs.ModelPair(FLOATING, QUANTIZED), gptq.pair_layers(QUANTIZED, FLOATING)
    batch, weights = layers[2:4], np.ones((60, 2))
    found = reconstruction._moments(pair, FLOATING, QUANTIZED, batch, SAMPLES, weights)
    errors = [
        [
            reconstruction._errors(source.weights_by_output(), *(part[0] for part in half.covariances(False))).sum()
            for half in halves
        ]
        for (_, source), halves in zip(batch, found, strict=True)
    ]
    assert min(errors[0]) > 1e-3 and max(errors[1]) < 1e-6


def test_layers_of_one_pass_are_changed_together(monkeypatch):
    calls = []
    original = reconstruction._moments
    monkeypatch.setattr(reconstruction, "_moments", lambda *args: calls.append(len(args[3])) or original(*args))
    monkeypatch.setattr(reconstruction, "_MOST_PASSES", 2)
    ptq.reconstruct(QUANTIZED, FLOATING, SAMPLES[:10])
    assert calls == [3, 2]
    calls.clear()
    monkeypatch.setattr(gptq, "_GRAM_BYTES", 1)
    ptq.reconstruct(QUANTIZED, FLOATING, SAMPLES[:10])
    assert calls == [1] * 5


def test_channels_that_are_rounded_one_by_one_get_the_same_weights(monkeypatch):
    int4 = ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES[:3]).model
    together = ptq.reconstruct(int4, FLOATING, SAMPLES[:3])
    monkeypatch.setattr(reconstruction, "_TOGETHER", 1)
    assert ptq.reconstruct(int4, FLOATING, SAMPLES[:3]).model == together.model


@pytest.mark.parametrize("name", ["digits_int8", "digits_int8_per_tensor", "digits_int16x8"])
def test_no_layer_gets_worse_on_its_samples_and_bytes_repeat(name):
    first, second = (ptq.reconstruct(golden(name), FLOATING, SAMPLES[:30]) for _ in range(2))
    assert first.model == second.model
    assert first.layers and all(after <= before for before, after in first.layers.values())


def killed(work):
    """Run `work` in a fork, which must end by SIGKILL."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_after_a_kill_it_resumes_at_the_pass_that_was_killed(tmp_path, monkeypatch):
    expected = ptq.reconstruct(INT4, FLOATING, SAMPLES)
    real, reconstructed = reconstruction._reconstruct_layer, []

    def interrupted(layer, source, moments):
        if layer.key == "conv2":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(layer, source, moments)

    def counted(layer, source, moments):
        reconstructed.append(layer.key)
        return real(layer, source, moments)

    def resumable():
        with keeping_parts(lambda: StageStore(tmp_path)):
            return ptq.reconstruct(INT4, FLOATING, SAMPLES)

    monkeypatch.setattr(reconstruction, "_reconstruct_layer", interrupted)
    killed(resumable)
    monkeypatch.setattr(reconstruction, "_reconstruct_layer", counted)
    result = resumable()
    assert reconstructed == ["conv2", "logits"]
    assert result == expected and not list(tmp_path.iterdir())


def test_a_conversion_reconstructs_without_the_outlier_samples_that_it_clips(monkeypatch):
    counts, images = [], [*IMAGES[:100], 300 * IMAGES[100]]
    original = ptq.reconstruct
    monkeypatch.setattr(ptq, "reconstruct", lambda *args: counts.append(len(args[2])) or original(*args))
    for method in ("percentile", "min_max"):
        calibration = tfq.CalibrationConfig(method=method)
        config = tfq.ConversionConfig(
            techniques=("reconstruction",), num_calibration_samples=101, calibration=calibration, verify=False
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tfq.convert(FLOATING, np.array(images), config)
        messages = " ".join(str(item.message) for item in caught)
        assert ("(index 100) are outliers" in messages) == (method == "percentile")
    assert counts == [100, 101]
