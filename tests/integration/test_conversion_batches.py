# SPDX-License-Identifier: Apache-2.0
"""Conversion and evaluation of models with a batch size above 1."""

import keras
import numpy as np
import pytest
import tf_keras
from interpreted import run_in_batches

import tfq
from tfq.conversion import convert_with_record

SAMPLES = 10  # not a multiple of the batch size
BATCH = 4
X = np.kron(np.random.default_rng(0).uniform(size=(SAMPLES, 4, 4, 2)), np.ones((1, 2, 2, 1))).astype(np.float32)


def flattened(library):
    """Build a model whose flatbuffer has the batch size in a RESHAPE and a TRANSPOSE_CONV."""
    layers = library.layers
    library.utils.set_random_seed(1)
    image = library.Input((8, 8, 2), name="image")
    values = layers.Conv2DTranspose(2, 2, strides=2, activation="relu")(layers.Conv2D(2, 3, strides=2)(image))
    values = layers.Permute((3, 1, 2))(values)
    return library.Model(image, layers.Dense(3, name="y")(layers.Flatten()(values)))


@pytest.fixture(scope="module", params=[keras, tf_keras], ids=["keras", "tf_keras"])
def model(request):
    return flattened(request.param)


def converted(model, batch_size, **settings):
    with pytest.warns(tfq.TfqWarning, match="10"):
        return convert_with_record(model, X, tfq.ConversionConfig(batch_size=batch_size, **settings))


def ends(result):
    return sorted((item.minimum, item.maximum) for item in result.ranges.tensors.values())


@pytest.mark.parametrize("method", ["percentile", "moving_average"])
def test_ranges_do_not_depend_on_the_batch_size(model, method):
    settings = {"calibration": tfq.CalibrationConfig(method=method), "verify": False}
    one, four = converted(model, 1, **settings), converted(model, BATCH, **settings)
    assert one.ranges.num_samples == four.ranges.num_samples == SAMPLES
    np.testing.assert_allclose(ends(four), ends(one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"scheme": "int16x8"}, {"quantizer": "litert"}], ids=str)
def test_a_batch_computes_what_keras_predicts(model, settings):
    result = converted(model, BATCH, **settings)
    assert result.verification is not None and result.verification.ok and result.verification.num_samples == 2 * BATCH
    expected = model.predict(X, verbose=0)
    got = run_in_batches(result.content, X, BATCH)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_every_example_is_evaluated_once(model):
    """Two thirds of the labels are right: a padded copy or a lost example would change the fraction."""
    content = converted(model, BATCH, verify=False).content
    predicted = run_in_batches(content, X, BATCH).argmax(1)
    labels = np.where(np.arange(SAMPLES) < 7, predicted, (predicted + 1) % 3)
    with pytest.warns(tfq.TfqWarning, match="padded"):
        record = tfq.evaluate(content, (X, labels))
    assert record.accuracy == 0.7 and record.num_examples == SAMPLES


def test_float_flatbuffer_with_a_batch_size_is_a_source():
    model = flattened(keras)
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32", batch_size=BATCH))
    with pytest.warns(tfq.TfqWarning, match="10"):
        content = tfq.convert(floating, X)
        analysis = tfq.analyze(content, floating, X)
    expected = model.predict(X, verbose=0)
    assert np.abs(run_in_batches(content, X, BATCH) - expected).max() < 0.05 * np.abs(expected).max()
    assert analysis.num_samples == SAMPLES


def test_techniques_change_weights_as_with_a_batch_of_one():
    model = flattened(keras)
    settings = {"techniques": ("cross_layer_equalization", "gptq", "bias_correction"), "verify": False}
    contents = [converted(model, batch_size, **settings).content for batch_size in (1, BATCH)]
    one, four = (run_in_batches(content, X, size) for content, size in zip(contents, (1, BATCH), strict=True))
    assert np.abs(one - four).max() < 0.02 * np.abs(one).max()
