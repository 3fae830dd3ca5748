# SPDX-License-Identifier: Apache-2.0
"""Outputs and ops that stay float: the same function in int8, or a warning that names them."""

import warnings

import numpy as np
import pytest
from messages import warned

import tfq
from tfq import tflite
from tfq.backends import LocalBackend, RunRequest
from tfq.conversion import convert
from tfq.conversion.fixed_scales import with_separate_scales
from tfq.keras_bridge import import_keras

SAMPLES = np.random.default_rng(0).normal(0, 1, (24, 8, 8, 2)).cumsum(1).cumsum(2).astype(np.float32)


def scores_next_to_features(last=None):
    """Return a model with a sigmoid that is an output and part of a concatenation with a much wider range."""
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    scores = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="scores")(image)
    features = layers.Conv2D(4, 3, padding="same", activation="relu", name="features")(image)
    joined = layers.Concatenate(name="joined")([scores, features])
    other = layers.Conv2D(1, 3, padding="same", name="other")(joined)
    return keras.Model(image, [layers.Reshape((8, 8), name="map")(scores), last(other) if last else other])


@pytest.fixture(scope="module")
def floating() -> bytes:
    return converted(scores_next_to_features(), None, scheme="float32")


def converted(model, samples=SAMPLES, **values) -> bytes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(samples|noise)")
        return tfq.convert(model, samples, tfq.ConversionConfig(**values))


def reordered(content: bytes, seed: int) -> bytes:
    """Return the same ops in another valid order."""
    model, rng = tflite.unpack(content), np.random.default_rng(seed)
    graph = model.subgraphs[0]
    waiting, ordered = list(graph.operators), []
    missing = {int(index) for op in waiting for index in op.outputs}
    while waiting:
        ready = [op for op in waiting if missing.isdisjoint(map(int, op.inputs))]
        op = ready[rng.integers(len(ready))]
        missing -= set(map(int, op.outputs))
        ordered.append(op)
        waiting.remove(op)
    graph.operators = ordered
    return tflite.pack(model, len(content))


def outputs(model: bytes) -> list[np.ndarray]:
    """Return real values of the outputs, largest first, because the order of outputs may differ between files."""
    graph = tflite.read(model).main_subgraph
    inputs, tensor = SAMPLES, graph.input_tensors[0]
    if tensor.scale:
        inputs = np.clip(np.rint(SAMPLES / tensor.scale[0]) + tensor.zero_point[0], -128, 127).astype(np.int8)
    results = LocalBackend().assess(RunRequest(model=model, inputs=(inputs,))).outputs
    scales = [(item.scale or (1.0,))[0] for item in graph.output_tensors]
    zeros = [(item.zero_point or (0,))[0] for item in graph.output_tensors]
    return [
        (result.astype(np.float64) - zero) * scale for result, scale, zero in zip(results, scales, zeros, strict=True)
    ]


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((expected**2).mean() / ((got - expected) ** 2).mean()))


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_a_join_are_int8_at_their_own_scale(floating, seed):
    shuffled = reordered(floating, seed)
    built = converted(shuffled)
    assert tfq.audit(built, tfq.AuditConfig(require="full_int8")).ok
    expected, got = outputs(floating), outputs(built)
    assert min(map(sqnr_db, expected, got)) > 25
    scales = [tensor.scale[0] for tensor in tflite.read(built).main_subgraph.output_tensors]
    assert min(scales) == pytest.approx(1 / 256)


def test_without_copies_scores_are_float_or_coarse_in_every_order(floating, monkeypatch):
    monkeypatch.setattr(convert, "with_separate_scales", lambda model: model)
    for seed in range(3):
        built = converted(reordered(floating, seed))
        scales = [tensor.scale for tensor in tflite.read(built).main_subgraph.output_tensors]
        assert () in scales or min(scale[0] for scale in scales) > 1.5 / 256


def test_an_output_that_stays_float_is_warned_of_by_name(floating, monkeypatch):
    monkeypatch.setattr(convert, "with_separate_scales", lambda model: model)
    for seed in range(8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            built = tfq.convert(reordered(floating, seed), SAMPLES)
        types = {tensor.dtype for tensor in tflite.read(built).main_subgraph.output_tensors}
        messages = [str(item.message) for item in caught if "RESHAPE" in str(item.message)]
        assert bool(messages) == ("float32" in types)
        if messages:
            assert "output" in messages[0]
            return
    pytest.fail("no order left an output in float")


def test_copies_compute_what_the_float_model_does_to_the_bit(floating):
    copied = with_separate_scales(floating)
    assert copied != floating
    for expected, got in zip(outputs(floating), outputs(copied), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_a_sigmoid_whose_readers_agree_is_not_copied():
    keras = import_keras()
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    one, two = (layers.Conv2D(2, 3, activation="sigmoid")(image) for _ in range(2))
    model = keras.Model(image, [one, layers.Concatenate()([one, two])])
    content = converted(model, None, scheme="float32")
    assert with_separate_scales(content) is content


def test_an_op_without_int8_form_causes_a_warning_unless_requested():
    ops, layers = import_keras().ops, import_keras().layers
    model = scores_next_to_features(lambda x: layers.Conv2D(2, 1, name="end")(ops.sin(x)))
    with warned("SIN") as caught:
        converted(model)
    name = (
        next(str(item.message) for item in caught if "SIN" in str(item.message)).partition("SIN (")[2].partition(")")[0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfq.TfqWarning)
        warnings.filterwarnings("ignore", message=".*(samples|noise)")
        converted(model, float_layers=(name,))
        converted(model, None, scheme="float32")


def model_with_padding_mask(last):
    """Return attention scores that are masked where the integers of `keep` are 0, and passed through `last`."""
    keras = import_keras()
    ops, layers = keras.ops, keras.layers
    keras.utils.set_random_seed(0)
    tokens, keep = keras.Input((8, 4), name="tokens"), keras.Input((8,), name="keep", dtype="int32")
    scores = ops.matmul(layers.Dense(4)(tokens), ops.transpose(layers.Dense(4)(tokens), (0, 2, 1)))
    mask = (1.0 - last(ops.cast(keep, "float32"))) * -1e9
    joined = ops.matmul(ops.softmax(scores + mask[:, None, :]), tokens)
    return keras.Model([tokens, keep], layers.Dense(3, name="end")(joined))


def test_a_cast_of_integer_inputs_causes_no_float_warning():
    rng = np.random.default_rng(0)
    keep = (rng.random((200, 8)) > 0.3).astype(np.int32)
    keep[:, 0] = 1
    data = {"tokens": rng.normal(size=(200, 8, 4)).cumsum(1).astype(np.float32), "keep": keep}
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfq.TfqWarning)
        tfq.convert(model_with_padding_mask(lambda x: x), data)
    with warned("SIN"):
        tfq.convert(model_with_padding_mask(import_keras().ops.sin), data)


def as_litert_torch_writes_it(floating: bytes) -> bytes:
    """Add the metadata entry with which litert-torch 0.10 marks its files."""
    from ai_edge_litert import schema_py_generated as generated

    edited = tflite.unpack(floating)
    buffer, entry = generated.BufferT(), generated.MetadataT()
    buffer.data = np.frombuffer(b"true", np.uint8)
    edited.buffers.append(buffer)
    entry.name, entry.buffer = b"keep_stablehlo_constant", len(edited.buffers) - 1
    edited.metadata = [*(edited.metadata or []), entry]
    return tflite.pack(edited, len(floating))


def test_files_of_litert_torch_become_full_int8(floating):
    int8 = converted(as_litert_torch_writes_it(floating))
    assert tfq.audit(int8).scheme == "full_int8"
    assert "keep_stablehlo_constant" not in tflite.read(int8).metadata


def test_files_of_litert_torch_stay_partly_float_with_their_constants_hidden(floating, monkeypatch):
    monkeypatch.setattr("tfq.conversion.convert.with_visible_constants", lambda model: model)
    assert tfq.audit(converted(as_litert_torch_writes_it(floating))).scheme == "mixed"
