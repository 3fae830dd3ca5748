# SPDX-License-Identifier: Apache-2.0
"""Learned ranges: the origin of the gradient by hand, and the final ranges."""

import numpy as np
from messages import refused
from small_models import fit_briefly, fit_for, noise, small_model

from tfq.compression import qat_model, qat_parity, untrained_qat_model
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.ranges import _lsq_quantize
from tfq.config import DistillationConfig, QATConfig
from tfq.conversion import convert_model
from tfq.data import Split
from tfq.errors import InputError

LEARNED = QATConfig(range_estimator="lsq")


def ranges_of(model):
    return {
        (place.layer, number): (float(pair["min_var"].numpy()), float(pair["max_var"].numpy()))
        for place in tfmot_symbols.activation_quantizers(model)
        for number, pair in enumerate(place.ranges)
    }


def test_the_gradient_is_that_of_learned_step_sizes():
    import tensorflow as tf

    values = np.array([-3.0, -0.31, 0.0, 0.52, 1.9, 7.0], np.float32)
    low, high = tf.Variable(-1.0), tf.Variable(2.0)
    with tf.GradientTape() as tape:
        rounded = _lsq_quantize(tf.constant(values), low, high, 15)
        total = tf.reduce_sum(rounded)
    step, below = 3 / 15, 5
    quantized = np.clip(np.rint(values / step), -below, 15 - below)
    np.testing.assert_allclose(rounded, quantized * step, rtol=1e-6)
    inside = (values / step > -below) & (values / step < 15 - below)
    to_step = np.where(inside, quantized - values / step, quantized).sum()
    gradients = tape.gradient(total, [low, high])
    np.testing.assert_allclose(np.array(gradients), np.array([-to_step, to_step]) / 15, rtol=1e-4)


def test_ends_learn_and_are_all_that_stays():
    model, data = small_model(), noise(small_model(), n=64)
    before = ranges_of(untrained_qat_model(model, data, LEARNED))
    trained_with = []

    def fit(quantized, callbacks):
        fit_for(3)(quantized, callbacks)
        trained_with.extend(weight.name for weight in quantized.trainable_weights)

    quantized = qat_model(model, fit, LEARNED, calibration=data)
    assert sum("learned_range" in name for name in trained_with) >= 3
    assert not any("learned_range" in weight.name for weight in quantized.weights)
    after = ranges_of(quantized)
    assert sum(after[key] != before[key] for key in before) >= 3
    # Both ends by one factor, so the zero point stays.
    low, high = after["quant_sum", len([key for key in after if key[0] == "quant_sum"]) - 1]
    assert low <= 0 < high


def test_the_flatbuffer_computes_what_was_trained():
    model, data = small_model(), noise(small_model(), n=64)
    quantized = qat_model(model, fit_for(2), LEARNED, calibration=data)
    split = Split(name="test", inputs=data.inputs, labels=data.labels, source="arrays")
    parity = qat_parity(quantized, convert_model(quantized), split)
    assert parity.first_departure is None and parity.missed() == ()


def test_too_wide_ranges_narrow_and_too_narrow_ones_widen():
    """The output is already the target: only rounding is left to learn."""
    from tfq.keras_bridge import import_tf_keras

    keras = import_tf_keras()
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    image = keras.Input((4,), name="x")
    y = keras.layers.Dense(4, use_bias=False, name="same")(image)
    model = keras.Model(image, keras.layers.Dense(4, use_bias=False, name="end")(y))
    model.set_weights([np.eye(4, dtype=np.float32)] * 2)

    def fit(quantized, callbacks):
        for layer in quantized.layers:
            for weight in layer.weights:
                weight._trainable = False
        quantized.compile(keras.optimizers.Adam(0.05), "mse")
        quantized.fit(x, x, batch_size=64, epochs=20, verbose=0, callbacks=callbacks)

    def end(spread):
        result = ranges_of(qat_model(model, fit, LEARNED, calibration=x * spread))
        return max(high for (layer, _), (_, high) in result.items() if layer == "quant_same")

    largest = float(np.abs(x).max())
    assert end(8.0) < 4 * largest
    assert end(1 / 8) > largest / 4


def test_with_distillation_they_are_learned_as_well():
    model, data = small_model(), noise(small_model(), n=32)
    config = QATConfig(range_estimator="lsq", distillation=DistillationConfig(enabled=True))
    before = ranges_of(untrained_qat_model(model, data, config))
    after = ranges_of(qat_model(model, fit_for(2), config, calibration=data))
    assert sum(after[key] != before[key] for key in before) >= 3


def test_without_calibration_they_are_refused():
    with refused(InputError, field="compression.qat.range_estimator", got="lsq"):
        qat_model(small_model(), fit_briefly, LEARNED)
    with refused(InputError, field="compression.qat.range_estimator", got="lsq"):
        qat_model(
            small_model(),
            fit_briefly,
            QATConfig(range_estimator="lsq", num_calibration_samples=0),
            calibration=noise(small_model()),
        )
