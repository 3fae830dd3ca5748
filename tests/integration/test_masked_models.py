# SPDX-License-Identifier: Apache-2.0
"""Models with masks agree with Keras in int8. Oracles: Keras and a plain interpreter."""

import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq.conversion import quantize
from tfq.conversion.convert import convert_with_record
from tfq.conversion.masks import BoundedMasks
from tfq.keras_bridge import import_keras

PLACES, CHANNELS, COUNT = 16, 16, 48


def sequences():
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(size=(COUNT, PLACES, CHANNELS)).cumsum(1) * 0.3, -3, 3).astype(np.float32)


def kept():
    rng = np.random.default_rng(1)
    return (np.arange(PLACES) < rng.integers(4, PLACES + 1, (COUNT, 1))).astype(np.int32)


def attention_scores(x):
    ops = import_keras().ops
    return ops.matmul(x, ops.transpose(x, (0, 2, 1))) * 0.2


def attended(inputs, scores):
    keras = import_keras()
    return keras.Model(inputs, keras.layers.Dense(3)(keras.ops.matmul(keras.ops.softmax(scores), inputs[0])))


def inputs(dtype="int32"):
    keras = import_keras()
    return keras.Input((PLACES, CHANNELS), name="x"), keras.Input((PLACES,), dtype=dtype, name="keep")


def causal():
    keras = import_keras()
    x, _ = inputs()
    y = keras.layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    return keras.Model([x], keras.layers.Dense(3)(y)), {"x": sequences()}


def padding():
    keras = import_keras()
    x, keep = inputs()
    mask = keras.ops.cast(keras.ops.expand_dims(keep, 1), "bool")
    y = keras.layers.MultiHeadAttention(2, 8)(x, x, attention_mask=mask)
    return keras.Model([x, keep], keras.layers.Dense(3)(y)), {"x": sequences(), "keep": kept()}


def added():
    x, _ = inputs()
    mask = np.triu(np.full((PLACES, PLACES), -1e9, np.float32), 1)
    return attended([x], attention_scores(x) + import_keras().ops.convert_to_tensor(mask)), {"x": sequences()}


def selected(value=-1e9):
    ops = import_keras().ops
    x, keep = inputs()
    scores = ops.where(ops.cast(ops.expand_dims(keep, 1), "bool"), attention_scores(x), value)
    return attended([x, keep], scores), {"x": sequences(), "keep": kept()}


def selected_infinite():
    return selected(-np.inf)


def switched_off(value=-1e9):
    ops = import_keras().ops
    x, keep = inputs()
    mask = (1.0 - ops.cast(ops.expand_dims(keep, 1), "float32")) * value
    return attended([x, keep], attention_scores(x) + mask), {"x": sequences(), "keep": kept()}


def keras_attention():
    keras = import_keras()
    x, keep = inputs("bool")
    y = keras.layers.Attention()([x, x], mask=[None, keep])
    return keras.Model([x, keep], keras.layers.Dense(3)(y)), {"x": sequences() * 0.5, "keep": kept().astype(bool)}


def over_two_axes():
    """Return a softmax that is spelled out as exp(x - log(sum(exp(x)))), with the maximum subtracted."""
    keras = import_keras()
    x = keras.Input((4, 4, CHANNELS), name="x")
    mask = np.tril(np.ones((16, 16), bool)).reshape(1, 4, 4, 4, 4)
    y = keras.layers.MultiHeadAttention(2, 8, attention_axes=(1, 2))(x, x, attention_mask=mask)
    return keras.Model([x], keras.layers.Dense(3)(y)), {"x": sequences().reshape(COUNT, 4, 4, CHANNELS)}


def in_the_data():
    x, mask = inputs("float32")
    scores = attention_scores(x) + import_keras().ops.expand_dims(mask, 1)
    return attended([x, mask], scores), {"x": sequences(), "keep": ((1 - kept()) * -1e9).astype(np.float32)}


def maximum_of_kept_places():
    keras = import_keras()
    x, keep = inputs()
    y = keras.layers.Conv1D(8, 3, padding="same")(x)
    y = keras.ops.where(keras.ops.cast(keras.ops.expand_dims(keep, -1), "bool"), y, -np.inf)
    return keras.Model([x, keep], keras.layers.Dense(3)(keras.ops.max(y, 1))), {"x": sequences(), "keep": kept()}


def padded_with_infinity():
    keras = import_keras()
    image = keras.Input((16, 16, 3), name="x")
    y = keras.layers.Conv2D(8, 3, padding="same")(image)
    y = keras.ops.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=float("-inf"))
    y = keras.layers.GlobalAveragePooling2D()(keras.layers.MaxPooling2D(3, 2)(y))
    rng = np.random.default_rng(0)
    x = np.kron(rng.uniform(-1, 1, (COUNT, 4, 4, 3)), np.ones((1, 4, 4, 1))).astype(np.float32)
    return keras.Model([image], keras.layers.Dense(3)(y)), {"x": x}


def with_rows_masked_throughout(build):
    def built():
        model, data = build()
        data["keep"][::4] = 0
        return model, data

    built.__name__ = f"{build.__name__}, rows masked throughout"
    return built


def switched_off_by_less():
    return switched_off(-1e4)


SIX = (causal, padding, added, selected, switched_off, keras_attention)
LEAST = dict.fromkeys(SIX, 30.0) | {padded_with_infinity: 40.0}
LEAST[over_two_axes] = 25.0
LEAST |= dict.fromkeys((in_the_data, maximum_of_kept_places, selected_infinite), 30.0)
LEAST |= {with_rows_masked_throughout(build): 28.0 for build in (selected, switched_off, switched_off_by_less)}


def sqnr(expected, got):
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return 10 * np.log10(expected.var() / np.mean((expected - got) ** 2))


def ran(model, data):
    """Return the outputs of an int8 model for arrays of real values."""
    runner = Interpreter(model_content=model).get_signature_runner()
    [output] = runner.get_output_details().values()
    results = []
    for number in range(COUNT):
        feed = {}
        for name, details in runner.get_input_details().items():
            value, (scale, zero_point) = data[name][number : number + 1], details["quantization"]
            if scale:
                limits = np.iinfo(details["dtype"])
                value = np.clip(np.round(value.astype(np.float64) / scale + zero_point), limits.min, limits.max)
            feed[name] = value.astype(details["dtype"])
        [result] = runner(**feed).values()
        scale, zero_point = output["quantization"]
        results.append((result.astype(np.float64) - zero_point) * scale)
    return np.concatenate(results)


def converted(model, data, **config):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=tfq.TfqWarning)
        # An integer becomes a float before it is quantized.
        warnings.filterwarnings("ignore", message=".*CAST.*", category=tfq.TfqWarning)
        return convert_with_record(model, data, tfq.ConversionConfig(num_calibration_samples=COUNT, **config))


def built(build):
    import_keras().utils.set_random_seed(3)
    return build()


SLOW = {selected_infinite, *[build for build in LEAST if "throughout" in build.__name__][:2]}


@pytest.mark.parametrize(
    "build",
    [pytest.param(build, id=build.__name__, marks=[pytest.mark.slow] * (build in SLOW)) for build in LEAST],
)
def test_a_masked_model_agrees_with_keras_in_int8(build):
    model, data = built(build)
    result = converted(model, data)
    expected = model.predict(data, verbose=0)
    assert sqnr(expected, ran(result.content, data)) >= LEAST[build]
    assert result.techniques["masks"]["bounded"]


@pytest.mark.slow
@pytest.mark.parametrize("build", [switched_off, selected, padded_with_infinity], ids=lambda build: build.__name__)
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_litert_quantizer_takes_bounded_masks(build, scheme):
    pytest.importorskip("litert_quantizer")
    model, data = built(build)
    result = converted(model, data, quantizer="litert", scheme=scheme)
    assert sqnr(model.predict(data, verbose=0), ran(result.content, data)) >= LEAST[build]


@pytest.mark.filterwarnings("ignore:.*SELECT_V2.*stay float")
@pytest.mark.parametrize("build", [added, padding, padded_with_infinity], ids=lambda build: build.__name__)
def test_a_masked_model_agrees_with_keras_in_int16x8(build):
    model, data = built(build)
    config = tfq.ConversionConfig(num_calibration_samples=COUNT, scheme="int16x8")
    result = convert_with_record(model, data, config)
    assert sqnr(model.predict(data, verbose=0), ran(result.content, data)) >= 40


@pytest.mark.parametrize("build", [causal, padded_with_infinity], ids=lambda build: build.__name__)
def test_without_the_bounds_the_verification_reports_a_collapse(build, monkeypatch):
    unbounded = lambda model, ranges, *rest: BoundedMasks(model=model, ranges=dict(ranges))  # noqa: E731
    monkeypatch.setattr(quantize, "bound_and_check_masks", unbounded)
    model, data = built(build)
    with pytest.warns(tfq.TfqWarning):
        result = convert_with_record(model, data, tfq.ConversionConfig(num_calibration_samples=COUNT))
    assert sqnr(model.predict(data, verbose=0), ran(result.content, data)) < 20
    assert result.verification.collapsed
