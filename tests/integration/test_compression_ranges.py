# SPDX-License-Identifier: Apache-2.0
"""Ranges of QAT: initially those of the calibration data, then debiased, and never too narrow for a kernel."""

import itertools

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from messages import refused, warned
from small_models import fit_for, noise, small_model

from tfq.compression import qat_model, untrained_qat_model
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat import qat
from tfq.compression.qat.narrow_ranges import widen_ranges
from tfq.compression.qat.ranges import calibrate_ranges, clip_outlier_examples, ema_ranges
from tfq.config import ConversionConfig, EvaluationConfig, QATConfig
from tfq.conversion import convert_model
from tfq.data import Split
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.evaluation import evaluate_model
from tfq.keras_bridge import import_tf_keras
from tfq.ptq import calibration


def ranges_of(model):
    """Return {layer: its ranges of activations, (min, max) each}."""
    results = {}
    for place in tfmot_symbols.activation_quantizers(model):
        pairs = [(float(pair["min_var"].numpy()), float(pair["max_var"].numpy())) for pair in place.ranges]
        results.setdefault(place.layer, []).extend(pairs)
    return results


def images(n=40, spread=1.0):
    return np.random.default_rng(1).normal(0, spread, size=(n, 6, 6, 2)).astype("float32")


def test_ranges_are_the_float_models_over_all_batches():
    keras, model, x = import_tf_keras(), small_model(), images(40, spread=50.0)
    quantized = qat.quantized(model).model
    assert calibrate_ranges(quantized, x, 40) == 2
    got = ranges_of(quantized)
    for layer in ("relu", "depthwise", "sum", "pool"):
        values = np.asarray(keras.Model(model.inputs, model.get_layer(layer).output)(x))
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        np.testing.assert_allclose(got[f"quant_{layer}"][-1], (low, high), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["quantize_layer"], [(x.min(), x.max())], rtol=1e-6)


@pytest.mark.parametrize(("estimator", "covered"), [("lsq", 0.9999), ("ema", 1.0)])
def test_learned_ranges_start_at_a_percentile_and_averages_at_the_extremes(estimator, covered):
    keras, model = import_tf_keras(), small_model()
    x = images(120)
    x[:, 0, 0, 0] *= 4  # one of the 72 values of each image has a wider range
    quantized = untrained_qat_model(model, x, QATConfig(range_estimator=estimator))
    got = ranges_of(quantized)
    for layer in ("relu", "sum"):
        values = np.asarray(keras.Model(model.inputs, model.get_layer(layer).output)(x))
        expected = min(0.0, float(np.quantile(values, 1 - covered))), max(0.0, float(np.quantile(values, covered)))
        np.testing.assert_allclose(got[f"quant_{layer}"][-1], expected, rtol=0.03, atol=1e-5)
        assert (expected[1] < 0.95 * values.max()) == (estimator == "lsq"), "the two starts differ"
    np.testing.assert_allclose(got["quantize_layer"], [(x.min(), x.max())], rtol=1e-6)


def test_kernels_have_the_range_of_each_of_their_channels():
    model = small_model()
    quantized = untrained_qat_model(model, images())
    kernel = model.get_layer("conv").get_weights()[0]
    (pair,) = [pair for name, _, _, pair in tfmot_symbols.weight_ranges(quantized) if name == "quant_conv"]
    np.testing.assert_allclose(pair["max_var"].numpy(), np.abs(kernel).max(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(pair["min_var"].numpy(), -pair["max_var"].numpy())


def test_no_weight_and_no_quantizer_is_changed_by_calibration():
    quantized = qat.quantized(small_model()).model
    quantizers = [place.quantizer for place in tfmot_symbols.activation_quantizers(quantized)]
    before = {weight.name: weight.numpy() for weight in quantized.weights}
    calibrate_ranges(quantized, images(), 40)
    changed = [weight.name for weight in quantized.weights if not np.array_equal(before[weight.name], weight.numpy())]
    assert changed and all(name.endswith(("_min:0", "_max:0")) for name in changed)
    assert [place.quantizer for place in tfmot_symbols.activation_quantizers(quantized)] == quantizers


def test_calibration_accepts_arrays_dicts_and_splits_up_to_the_limit():
    x = images(40)
    x[10:] *= 100
    split = Split(name="train", inputs={"image": x}, labels=None, source="arrays")
    quantized = qat.quantized(small_model()).model
    for provided in (x, {"image": x}, split):
        assert calibrate_ranges(quantized, provided, 10) == 1
        assert ranges_of(quantized)["quantize_layer"][0][1] == pytest.approx(float(x[:10].max()))


def test_calibration_data_that_does_not_fit_is_refused():
    quantized = qat.quantized(small_model()).model
    with refused(InputError, field="data", expected=(6, 6, 2), got=(6, 6, 3)):
        calibrate_ranges(quantized, np.zeros((4, 6, 6, 3), np.float32), 4)
    with refused(InputError, word="'image'"):
        calibrate_ranges(quantized, {"picture": np.zeros((4, 6, 6, 2), np.float32)}, 4)


def test_non_finite_activations_are_an_error_with_the_layer():
    quantized = qat.quantized(small_model()).model
    kernel = next(w for w in quantized.get_layer("quant_depthwise").weights if "depthwise_kernel:" in w.name)
    kernel.assign(kernel * 0 + 3e38)
    with refused(TfqError, field="calibration", got="quant_depthwise"):
        calibrate_ranges(quantized, images(), 40)


def balanced_model(x):
    """Return a model whose classes all occur on `x`, even if its activations hardly differ."""
    model = small_model()
    features = np.asarray(import_tf_keras().Model(model.inputs, model.get_layer("pool").output)(x))
    kernel = np.random.default_rng(2).normal(size=(8, 3)).astype("float32") / features.std(axis=0)[:, None]
    model.get_layer("head").set_weights([kernel, -features.mean(axis=0) @ kernel])
    return model


def test_untrained_qat_equals_ptq_and_tfmots_ranges_do_not():
    x = images(200)
    model = balanced_model(x)
    floating = convert_model(model, config=ConversionConfig(scheme="float32"))
    split = Split(name="test", inputs={"image": x}, labels=np.zeros(len(x), np.int64), source="arrays")

    def agreement(content):
        return evaluate_model(content, split, EvaluationConfig(num_runs=0), reference=floating).agreement

    calibrated = agreement(convert_model(untrained_qat_model(model, x)))
    assert calibrated > 0.9 and calibrated > agreement(convert_model(model, x)) - 0.02
    # Starting from [-6, 6] without other information.
    assert agreement(convert_model(qat.quantized(model).model)) < 0.8


@pytest.mark.parametrize("seen", [0, 7])
def test_the_moving_average_follows_its_formula_and_tfmots_quantizers_return(seen):
    import tensorflow as tf

    quantized = qat.quantized(small_model()).model
    places = tfmot_symbols.activation_quantizers(quantized)
    place = next(place for place in places if place.is_moving_average)
    pair, average = place.ranges[0], 6.0
    with ema_ranges(quantized, seen) as steps_seen:
        (debiased,) = [
            item.quantizer for item in tfmot_symbols.activation_quantizers(quantized) if item.ranges[0] is pair
        ]
        for n, top in enumerate([10.0, 15.0, 5.0, 12.0], start=seen):
            debiased(tf.constant([-1.0, top]), True, pair)
            decay = 0.0 if n == 0 else (1 + n) / (10 + n)
            average = decay * average + (1 - decay) * top
            assert float(pair["max_var"].numpy()) == pytest.approx(average, rel=1e-5)
        assert steps_seen() == 4
        debiased(tf.constant([-100.0, 100.0]), False, pair)
        assert float(pair["max_var"].numpy()) == pytest.approx(average, rel=1e-5)
    after = tfmot_symbols.activation_quantizers(quantized)
    assert [item.quantizer for item in after] == [item.quantizer for item in places]


@pytest.mark.parametrize(
    ("far", "known", "expected"),
    [
        (1, True, 5.0),  # one of eight, which may exceed 2 by as much as the range of 3 is wide
        (2, True, 5.0),
        (3, True, 700.0),  # too many to be outliers: the model has changed
        (1, False, 700.0),
    ],
)
def test_single_examples_far_beyond_the_range_are_clipped(far, known, expected):
    import tensorflow as tf

    batch = np.full((8, 3, 2), 1.5, np.float32)
    batch[:far, 1, 0] = 700
    batch[:far, 2, 1] = -700
    result = np.asarray(
        clip_outlier_examples(tf.constant(batch), tf.constant(-1.0), tf.constant(2.0), tf.constant(known))
    )
    assert result.max() == expected and result.min() == (-4.0 if expected == 5.0 else -700)
    np.testing.assert_array_equal(result[far:], batch[far:])


def test_calibration_leaves_out_an_example_that_goes_far_beyond_the_others():
    model, x = small_model(), images(200)
    usual = ranges_of(untrained_qat_model(model, x, QATConfig(num_calibration_samples=200)))
    wrong = x.copy()
    wrong[17] *= 500
    result = ranges_of(untrained_qat_model(model, wrong, QATConfig(num_calibration_samples=200)))
    assert result["quant_sum"][-1][1] == pytest.approx(usual["quant_sum"][-1][1], rel=0.2)
    few = ranges_of(untrained_qat_model(model, wrong, QATConfig(num_calibration_samples=50)))
    assert few["quant_sum"][-1][1] > 20 * usual["quant_sum"][-1][1]


def test_both_ranges_of_one_quantizer_start_at_the_first_batch():
    # tfmot quantizes before and after gelu with one quantizer.
    keras = import_tf_keras()
    image = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3, activation="gelu", name="gelu")(image)
    model = keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x)))
    quantized = qat.quantized(model).model
    (place,) = [place for place in tfmot_symbols.activation_quantizers(quantized) if place.layer == "quant_gelu"]
    assert len(place.ranges) == 2
    with ema_ranges(quantized):
        quantized(images(8, spread=0.01), training=True)
    assert all(-0.5 < low < 0 < high < 0.5 for low, high in ranges_of(quantized)["quant_gelu"])


def test_without_calibration_ranges_fit_the_data_after_few_steps():
    # tfmot's own start at [-6, 6]; activations for inputs around 100 are far beyond.
    model = small_model()
    quantized = qat_model(model, fit_for(spread=100.0))
    inputs = noise(model, spread=100.0).inputs["x"]
    expected = float(
        np.max(import_tf_keras().Model(quantized.inputs, quantized.get_layer("quant_depthwise").output)(inputs))
    )
    low, high = ranges_of(quantized)["quant_depthwise"][-1]
    assert expected / 3 < high < expected * 3 and low != pytest.approx(-6, abs=0.5)
    assert ranges_of(quantized)["quantize_layer"][0][1] == pytest.approx(inputs.max())


def test_calibrated_ranges_are_not_forgotten_in_the_first_step():
    model, x = small_model(), images(320, spread=100.0)
    small = noise(model, n=8).inputs["x"]

    def fit(quantized, callbacks):
        quantized.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        quantized.fit(small, np.zeros(8, int), batch_size=8, verbose=0, callbacks=callbacks)

    calibrated = ranges_of(untrained_qat_model(model, x))["quant_sum"][-1][1]
    trained = ranges_of(qat_model(model, fit, QATConfig(num_calibration_samples=320), calibration=x))["quant_sum"][-1][
        1
    ]
    # Ten batches seen before: 11/20 of the old value stays. The batch of this step is a hundred times smaller.
    assert trained == pytest.approx(calibrated * 11 / 20, rel=0.05)
    fresh = ranges_of(qat_model(model, fit, QATConfig(num_calibration_samples=0), calibration=x))["quant_sum"][-1][1]
    assert fresh < calibrated / 10


def dead(bias=-1e3):
    """Return a model whose convolution `dead` is 0 after its ReLU for any input."""
    keras = import_tf_keras()
    layers = keras.layers
    image = keras.Input((6, 6, 2), name="image")
    alive = layers.Conv2D(4, 3, padding="same", activation="relu", name="alive")(image)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="dead")(alive)
    x = layers.Conv2D(4, 3, padding="same", name="behind")(x)
    model = keras.Model(
        image, layers.Dense(3, name="head")(layers.Flatten(name="flatten")(layers.Add(name="sum")([alive, x])))
    )
    kernel, _ = model.get_layer("dead").get_weights()
    kernel[..., 0] = 0
    model.get_layer("dead").set_weights([kernel, np.full(4, bias, np.float32)])
    return model


def test_a_dead_layer_is_named_and_has_a_valid_range():
    model, x = dead(), images(64)
    with warned("quant_dead"):
        quantized = untrained_qat_model(model, x)
    content = convert_model(quantized)
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for low, high in itertools.chain(*ranges_of(quantized).values()):
        assert np.isfinite([low, high]).all() and low <= 0 <= high and high - low > 0.01
    split = Split(name="test", inputs={"image": x}, labels=np.zeros(64, np.int64), source="arrays")
    floating = convert_model(model, config=ConversionConfig(scheme="float32"))
    assert evaluate_model(content, split, EvaluationConfig(num_runs=0), reference=floating).agreement > 0.9


@pytest.mark.parametrize("width", [0.0, 1e-9])
def test_without_the_widening_xnnpack_refuses_the_model(width, monkeypatch):
    monkeypatch.setattr(calibration, "with_kernel_limits", lambda model, ranges, scheme: (ranges, ()))
    quantized = qat.quantized(dead()).model
    calibrate_ranges(quantized, images(64), 64)
    (place,) = [place for place in tfmot_symbols.activation_quantizers(quantized) if place.layer == "quant_dead"]
    place.ranges[-1]["max_var"].assign(width)
    interpreter = Interpreter(model_content=convert_model(quantized))
    with pytest.raises(RuntimeError, match="XNNP"):
        interpreter.allocate_tensors()
    with warned("quant_dead"):
        assert "quant_dead" in widen_ranges(quantized)
    interpreter = Interpreter(model_content=convert_model(quantized))
    interpreter.allocate_tensors()


def test_small_activations_of_a_layer_with_small_weights_keep_their_range(recwarn):
    model = small_model()
    depthwise = model.get_layer("depthwise")
    depthwise.set_weights([depthwise.get_weights()[0] * 1e-6, np.zeros(8, np.float32)])
    quantized = untrained_qat_model(model, images())
    low, high = ranges_of(quantized)["quant_depthwise"][-1]
    assert 0 < high - low < 1e-4
    assert not [warning for warning in recwarn if issubclass(warning.category, TfqWarning)]


def test_a_channel_of_zeros_has_a_scale_that_its_bias_fits():
    quantized = untrained_qat_model(small_zero_channel(), images())
    (pair,) = [pair for name, _, _, pair in tfmot_symbols.weight_ranges(quantized) if name == "quant_conv"]
    bounds = pair["max_var"].numpy()
    assert bounds[3] == pytest.approx(bounds.max() * 2**-12) and (bounds > 0).all()


def small_zero_channel():
    model = small_model()
    (kernel,) = model.get_layer("conv").get_weights()
    kernel[..., 3] = 0
    model.get_layer("conv").set_weights([kernel])
    return model
