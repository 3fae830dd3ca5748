# SPDX-License-Identifier: Apache-2.0
"""Layers that output 0 on all calibration data: the files load, agree with Keras, and the layer is named.

Each file runs in a child, because a faulty file may abort the process.
"""

import multiprocessing
import warnings

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from messages import warned
from plain_runs import DoesNotRun, run_plainly

import tfq
from tfq.conversion import convert_with_record, quantize
from tfq.ptq.calibration import kernel_limits
from tfq.quant_math import sqnr_db

X = np.random.default_rng(0).normal(size=(60, 16)).astype("float32").cumsum(1)
L = keras.layers
SCHEMES = [(scheme, quantizer) for scheme in ("int8", "int16x8") for quantizer in ("tensorflow", "litert")]


def always(value):
    return keras.initializers.Constant(value)


def dead(units=8, **settings):
    return L.Dense(units, activation="relu", bias_initializer=always(-1e3), name="dead", **settings)


def head(x, bias=0.5):
    return L.Dense(3, bias_initializer=always(bias), name="head")(x)


def sequential(x):
    return head(dead()(x))


def no_bias(x):
    return head(dead()(x), bias=0.0)


def softmax(x):
    return L.Softmax()(head(dead()(x)))


def zero_head(x):
    return L.Dense(3, kernel_initializer="zeros", name="dead")(L.Dense(8, activation="relu")(x))


def zero_gamma(x):
    hidden = L.Dense(8, activation="relu")(x)
    branch = L.BatchNormalization(gamma_initializer="zeros")(L.Dense(8, use_bias=False, name="dead")(hidden))
    return head(L.ReLU()(L.Add()([hidden, branch])))


def added(x):
    return head(L.Add()([L.Dense(8)(x), dead()(x)]))


def concatenated(x):
    return head(L.Concatenate()([L.Dense(8)(x), dead()(x)]))


def second_output(x):
    hidden = L.Dense(8, activation="relu")(x)
    return [head(hidden), dead(1)(hidden)]


def convolution(x):
    settings = {"activation": "relu6", "bias_initializer": always(-1e3), "name": "dead"}
    hidden = L.Conv2D(4, 3, **settings)(L.Reshape((4, 4, 1))(x))
    hidden = L.DepthwiseConv2D(1, bias_initializer=always(0.3))(hidden)
    hidden = L.Conv2DTranspose(4, 2, strides=2, bias_initializer=always(0.3))(hidden)
    return head(L.Flatten()(L.MaxPooling2D(2)(hidden)))


def hard_swish(x):
    hidden = L.Dense(8, bias_initializer=always(-1e3))(x)
    return head(L.Activation("hard_silu", name="dead")(hidden))


MODELS = [
    sequential,
    no_bias,
    softmax,
    zero_head,
    zero_gamma,
    added,
    concatenated,
    second_output,
    convolution,
    hard_swish,
]


def model_of(build):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16,), name="x")
    return keras.Model(inputs, build(inputs))


def outputs_of(content):
    """Return the outputs of a file, computed by a plain interpreter."""
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    (input_details,), results = runner.get_input_details(), runner.get_output_details()
    limits = np.iinfo(input_details["dtype"])
    rows = []
    for sample in X:
        scale, zero = input_details["quantization"]
        quantized = np.clip(np.rint(sample / scale) + zero, limits.min, limits.max)
        runner.set_tensor(input_details["index"], quantized[None].astype(input_details["dtype"]))
        runner.invoke()
        rows.append([])
        for item in results:
            scale, zero = item["quantization"]
            rows[-1].append((runner.get_tensor(item["index"]).astype(np.float32) - zero) * scale)
    return [np.concatenate(values) for values in zip(*rows, strict=True)]


def _child(pipe, content):
    pipe.send(outputs_of(content))


def outputs_in_child(content):
    """Return the same from a child; None if it fails or dies."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(there, content))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        child.join()


def agrees(content, model):
    found = outputs_in_child(content)
    if found is None:
        return False
    expected = model.predict(X, verbose=0)
    expected = expected if isinstance(expected, list) else [expected]
    by_size = {item.shape: item for item in found}
    steps = [max(float(np.ptp(item)), 0.5) / 25 for item in expected]
    return all(np.abs(by_size[item.shape] - item).max() < step for item, step in zip(expected, steps, strict=True))


def converted(model, scheme, quantizer, method="percentile"):
    config = tfq.ConversionConfig(
        scheme=scheme, quantizer=quantizer, verify=False, calibration=tfq.CalibrationConfig(method=method)
    )
    return convert_with_record(model, X, config)


QUICK = (added, zero_head, convolution)


@pytest.mark.parametrize(
    "build", [item if item in QUICK else pytest.param(item, marks=pytest.mark.slow) for item in MODELS]
)
def test_dead_layers_load_agree_with_keras_and_are_named(build):
    model = model_of(build)
    for scheme, quantizer in SCHEMES:
        with warned("dead"):
            result = converted(model, scheme, quantizer)
        assert result.dead_layers == ("dead",), (scheme, quantizer)
        assert agrees(result.content, model), (scheme, quantizer)


def test_min_max_ranges_of_a_dead_branch_load():
    model = model_of(added)
    for scheme, quantizer in SCHEMES:
        with warned("dead"):
            content = converted(model, scheme, quantizer, "min_max").content
        assert agrees(content, model)


def agreement(model, samples, scheme, quantizer, method="percentile"):
    """Return the SQNR against Keras in dB; None if the file does not run."""
    config = tfq.ConversionConfig(
        scheme=scheme, quantizer=quantizer, verify=False, calibration=tfq.CalibrationConfig(method=method)
    )
    with warnings.catch_warnings(action="ignore", category=tfq.errors.TfqWarning):
        content = tfq.convert(model, samples, config)
    try:
        (result,) = run_plainly(content, {"x": samples}).values()
    except DoesNotRun:
        return None
    expected = model.predict(samples, verbose=0)
    return sqnr_db(expected, result.values.reshape(expected.shape))


def test_a_dead_slice_of_an_input_has_the_scale_of_the_input(monkeypatch):
    inputs = keras.Input((16,), name="x")
    hidden = L.Add()([L.Dense(4)(inputs[:, :8]), L.Dense(4)(inputs[:, 8:])])
    padded = np.concatenate([X[:, :8], 0 * X[:, 8:]], axis=1)
    model = keras.Model(inputs, L.Dense(3)(hidden))
    for scheme, quantizer in SCHEMES:
        found = agreement(model, padded, scheme, quantizer)
        assert found is not None and found > 25, (scheme, quantizer, found)
    monkeypatch.setattr(kernel_limits._Limits, "_reach", kernel_limits._Limits._width_of)
    assert agreement(model, padded, *SCHEMES[0]) is None


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_recurrent_layers_run_if_some_steps_are_always_padding(library, cell):
    layers = pytest.importorskip(library).layers
    samples = np.random.default_rng(0).normal(size=(40, 8, 6)).astype("float32").cumsum(1) * 0.4
    for number, sample in enumerate(samples):
        sample[6 - number % 4 :] = 0
    inputs = layers.Input((8, 6), name="x")
    outputs = layers.Dense(3)(getattr(layers, cell)(5)(layers.Masking()(inputs)))
    model = pytest.importorskip(library).Model(inputs, outputs)
    for scheme, quantizer in SCHEMES[:3]:
        found = agreement(model, samples, scheme, quantizer)
        assert found is not None and found > 25, (scheme, quantizer, found)


def test_without_the_limits_dead_layers_do_not_load(monkeypatch):
    monkeypatch.setattr(quantize.calibration, "with_kernel_limits", lambda model, ranges, scheme: (ranges, ()))
    model = model_of(added)
    assert not any(agrees(converted(model, *chosen).content, model) for chosen in (SCHEMES[0], SCHEMES[2]))


def test_a_pruned_channel_keeps_its_bias_in_the_litert_quantizer(monkeypatch):
    model = model_of(lambda x: L.Dense(3, name="pruned")(x))
    weights, bias = model.get_layer("pruned").get_weights()
    weights[:, 1], bias[1] = 0.0, 0.5
    model.get_layer("pruned").set_weights([weights, bias])
    for scheme in ("int8", "int16x8"):
        assert agrees(converted(model, scheme, "litert").content, model)
    monkeypatch.setattr(quantize, "with_bias_headroom", lambda model, ranges, config: model)
    assert np.abs(outputs_in_child(converted(model, "int8", "litert").content)[0][:, 1]).max() < 0.1


def test_a_percentile_does_not_turn_off_a_rarely_active_layer():
    conv = L.Conv2D(8, 1, activation="relu", kernel_initializer="ones", name="conv")
    model = model_of(lambda x: conv(L.Reshape((4, 4, 1))(x)))
    rare = np.full((40, 16), -1.0, "float32")
    rare[:, 0] = np.where(np.arange(40) == 7, 2.0, -1.0)
    config = tfq.ConversionConfig(calibration=tfq.CalibrationConfig(percentile=99.0), verify=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = convert_with_record(model, rare, config)
    assert result.dead_layers == () and not any("dead layers" in str(item.message) for item in caught)
    (chosen,) = [item for item in result.ranges.tensors.values() if item.layer == "conv"]
    assert chosen.maximum == 2.0
