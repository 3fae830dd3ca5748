# SPDX-License-Identifier: Apache-2.0
"""Quantization of a model's inputs and the meaning of its outputs, by hand."""

import numpy as np
import pytest
from messages import refused

from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import decode_outputs, prepare_inputs
from tfq.tflite import Model, Signature, Subgraph, Tensor


def model_of(*inputs: dict, outputs: tuple[dict, ...] = (), signatures: tuple[Signature, ...] = ()) -> Model:
    """Return a Model that has only inputs and outputs."""
    tensors = []
    for index, fields in enumerate((*inputs, *outputs)):
        fields = {"name": f"t{index}", "shape": (1, 2), "dtype": "float32", **fields}
        tensors.append(Tensor(index=index, shape_signature=fields.pop("signature", fields["shape"]), **fields))
    subgraph = Subgraph(
        index=0,
        name="main",
        tensors=tuple(tensors),
        ops=(),
        inputs=tuple(range(len(inputs))),
        outputs=tuple(range(len(inputs), len(tensors))),
    )
    return Model(version=3, description="", subgraphs=(subgraph,), signatures=signatures, buffer_bytes=0, model_bytes=0)


def split(*arrays, **named) -> Split:
    inputs = {"x": np.asarray(arrays[0])} if arrays else {name: np.asarray(array) for name, array in named.items()}
    return Split(name="test", inputs=inputs, labels=None, source="arrays")


INT8 = {"dtype": "int8", "scale": (0.5,), "zero_point": (10,)}


def test_quantized_values_round_half_to_even_and_saturate():
    # x / 0.5 + 10; truncation would give 10 for 0.49, and rounding half up 11 for 0.25 and 13 for 1.25.
    x = np.array([[0.0, 0.49], [0.25, 1.25], [-0.25, 0.75], [1e6, -1e6]], np.float32)
    prepared = prepare_inputs(model_of(INT8), split(x))
    assert prepared.arrays[0].dtype == np.int8
    assert prepared.arrays[0].tolist() == [[10, 11], [10, 12], [10, 12], [127, -128]]


def test_float_inputs_are_fed_as_they_are():
    x = np.array([[0.1, -3.7]], np.float64)
    prepared = prepare_inputs(model_of({}), split(x))
    assert prepared.arrays[0].dtype == np.float32
    np.testing.assert_array_equal(prepared.arrays[0], x.astype(np.float32))
    assert (prepared.clipped_fraction, prepared.unused_fraction, prepared.warnings) == (None, None, ())


def test_values_more_than_half_a_step_beyond_the_range_are_clipped():
    # Values -128 to 127 represent -69 to 58.5; half a step beyond is -69.25 to 58.75.
    x = np.array([[58.5, 58.7], [58.8, 1000.0], [-69.2, -69.3], [0.0, 0.0]], np.float32)
    prepared = prepare_inputs(model_of(INT8), split(x))
    assert prepared.clipped_fraction == 3 / 8
    assert prepared.unused_fraction == 0.0
    assert len(prepared.warnings) == 1
    assert "37.5%" in prepared.warnings[0]


def test_data_scaled_to_one_underuses_the_range_of_pixels():
    pixels = {"dtype": "int8", "scale": (1.0,), "zero_point": (-128,)}
    scaled = prepare_inputs(model_of(pixels), split(np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)))
    assert scaled.unused_fraction == pytest.approx(254 / 255)
    assert scaled.clipped_fraction == 0.0
    assert "data.scale" in scaled.warnings[0]
    raw = prepare_inputs(model_of(pixels), split(np.linspace(0, 255, 20, dtype=np.float32).reshape(10, 2)))
    assert (raw.unused_fraction, raw.clipped_fraction, raw.warnings) == (0.0, 0.0, ())


def test_pieces_of_a_large_array_are_quantized_as_the_whole(monkeypatch):
    x = np.random.default_rng(0).normal(0, 40, (57, 2)).astype(np.float32)
    whole = prepare_inputs(model_of(INT8), split(x))
    monkeypatch.setattr("tfq.evaluation.inputs._PIECE_VALUES", 7)
    pieces = prepare_inputs(model_of(INT8), split(x))
    np.testing.assert_array_equal(pieces.arrays[0], whole.arrays[0])
    assert (pieces.clipped_fraction, pieces.unused_fraction) == (whole.clipped_fraction, whole.unused_fraction)


def test_inputs_are_bound_by_the_names_of_the_signature():
    signature = Signature(inputs={"left": 1, "right": 0}, outputs={})
    model = model_of({}, {"shape": (1, 3)}, signatures=(signature,))
    assert model.input_names == ("right", "left")
    prepared = prepare_inputs(model, split(left=np.ones((4, 3)), right=np.zeros((4, 2))))
    assert [array.shape for array in prepared.arrays] == [(4, 2), (4, 3)]
    assert model_of({}, {}).input_names == ("t0", "t1")


@pytest.mark.parametrize(
    ("tensor", "x", "expected"),
    [
        ({}, np.zeros((5, 3)), {"field": "data", "expected": (2,), "got": (3,)}),
        ({}, np.zeros((5, 2, 1)), {"field": "data", "expected": (2,), "got": (2, 1)}),
        (
            {"shape": (1, 32, 32, 3)},
            np.zeros((5, 28, 28, 3)),
            {"field": "data", "expected": (32, 32, 3), "got": (28, 28, 3), "word": "32,32"},
        ),
        ({}, np.array([[0, 0], [0, np.nan]]), {"field": "x[1]", "got": "NaN"}),
        (INT8, np.array([[0, np.inf]]), {"field": "x[0]", "got": "infinity"}),
        ({"dtype": "int32"}, np.array([[1.0, 2.0], [3.0, 2.5]]), {"field": "t0[1]", "expected": "int32"}),
        ({"dtype": "int8"}, np.array([[1, 300]]), {"field": "t0[0]", "expected": "int8"}),
        (
            {"dtype": "int8", "scale": (0.5, 0.5), "zero_point": (0, 0)},
            np.zeros((1, 2)),
            {"field": "input 't0'", "expected": 1, "got": (0.5, 0.5)},
        ),
        ({"dtype": "int8", "scale": (0.0,), "zero_point": (0,)}, np.zeros((1, 2)), {"got": (0.0,)}),
        ({"dtype": "int8", "scale": (float("nan"),), "zero_point": (0,)}, np.zeros((1, 2)), {"word": "nan"}),
        ({"dtype": "resource"}, np.zeros((1, 2)), {"field": "t0", "got": "resource"}),
    ],
)
def test_data_that_the_model_cannot_take_is_refused(tensor, x, expected):
    with refused(InputError, **expected):
        prepare_inputs(model_of(tensor), split(x))


def test_dimensions_that_the_model_leaves_open_take_any_size():
    prepared = prepare_inputs(model_of({"shape": (1, 1), "signature": (-1, -1)}), split(np.zeros((3, 7))))
    assert prepared.arrays[0].shape == (3, 7)


def test_indices_are_fed_as_integers():
    prepared = prepare_inputs(model_of({"dtype": "int32"}), split(np.array([[3.0, 4.0]])))
    assert prepared.arrays[0].dtype == np.int32


def test_outputs_are_dequantized_with_zero_point_and_scale():
    model = model_of({}, outputs=({**INT8, "name": "quantized"}, {"name": "floating"}, {"dtype": "int64"}))
    outputs = [np.array([[10, 12]], np.int8), np.array([[0.5, 1.5]], np.float32), np.array([3], np.int64)]
    quantized, reals, classes = decode_outputs(model, outputs)
    assert quantized.tolist() == [[0.0, 1.0]]
    assert reals.tolist() == [[0.5, 1.5]]
    assert classes.tolist() == [3]
    outputs[1] = np.array([[0.5, np.nan]], np.float32)
    with refused(InputError, field="outputs", word="'floating'"):
        decode_outputs(model, outputs)


@pytest.mark.parametrize("shape", [(), (3,), (4, 2)])
def test_examples_without_a_common_batch_have_whole_inputs(shape):
    model = model_of({"shape": (1, 2)}, {"shape": shape})
    first, second = model.input_names
    arrays = {first: np.zeros((6, 2), np.float32), second: np.ones((6, *shape), np.float32)}
    data = Split(name="test", inputs=arrays, labels=None, source="arrays")
    assert [array.shape for array in prepare_inputs(model, data).arrays] == [(6, 2), (6, *shape)]
    with refused(InputError, field="data", expected=shape, got=(*shape, 9)):
        wrong = {**arrays, second: np.ones((6, *shape, 9), np.float32)}
        prepare_inputs(model, Split(name="test", inputs=wrong, labels=None, source="arrays"))


def test_an_input_without_a_batch_names_the_shape_to_use():
    data = Split(name="test", inputs={"x": np.zeros((4, 5), np.float32)}, labels=None, source="arrays")
    with refused(InputError, field="data", expected=(), got=(5,), word="[1,"):
        prepare_inputs(model_of({"shape": (5,)}), data)
