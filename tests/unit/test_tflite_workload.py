# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and bytes of ops, compared with counts by hand."""

from types import SimpleNamespace

import pytest
from golden_models import golden

from tfq.tflite import Op, Subgraph, Tensor, read
from tfq.tflite.workload import peak_activation_bytes, tensor_bytes, workload


def work_of(name, inputs, output, dtype="int8", constants=(1, 2)):
    """Return the work of a graph with one op; the inputs at `constants` are constants."""
    tensors = tuple(
        Tensor(
            index=index,
            name=str(index),
            shape=shape,
            shape_signature=shape,
            dtype=dtype,
            is_constant=index in constants,
        )
        for index, shape in enumerate([*inputs, output])
    )
    places = tuple(index if shape is not None else -1 for index, shape in enumerate(inputs))
    op = Op(index=0, name=name, version=1, inputs=places, outputs=(len(inputs),))
    graph = Subgraph(index=0, name="", tensors=tensors, ops=(op,), inputs=(0,), outputs=(len(inputs),))
    return workload(SimpleNamespace(main_subgraph=graph))


@pytest.mark.parametrize(
    ("name", "inputs", "output", "expected"),
    [
        ("CONV_2D", [(1, 8, 8, 3), (16, 3, 3, 3), (16,)], (1, 8, 8, 16), 64 * 16 * 27),
        ("CONV_2D", [(1, 8, 8, 6), (16, 3, 3, 3), (16,)], (1, 8, 8, 16), 64 * 16 * 27),  # two groups
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 4), (1, 5, 5, 8), (8,)], (1, 4, 4, 8), 16 * 8 * 25),
        ("FULLY_CONNECTED", [(7, 20), (5, 20), (5,)], (7, 5), 7 * 100),
        ("TRANSPOSE_CONV", [(4,), (6, 2, 2, 3), (1, 4, 4, 3)], (1, 8, 8, 6), 16 * 6 * 4 * 3),
        ("CONV_3D", [(1, 4, 4, 4, 2), (3, 3, 3, 2, 5), (5,)], (1, 4, 4, 4, 5), 64 * 5 * 54),
        ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 6)], (2, 3, 6), 2 * 3 * 4 * 6),
        ("BATCH_MATMUL", [(2, 4, 3), (2, 6, 4)], (2, 3, 6), 2 * 3 * 4 * 6),  # both transposed
        ("ADD", [(1, 8), (1, 8)], (1, 8), 0),
    ],
)
def test_multiply_adds_are_those_of_the_definition(name, inputs, output, expected):
    assert work_of(name, inputs, output).multiply_adds == expected


def test_lstm_uses_each_matrix_once_a_step():
    matrices = [(4, 3)] * 4 + [(4, 4)] * 4
    inputs = [(2, 10, 3), *matrices, *[(4,)] * 3, *[(4,)] * 4, (4, 4), (4,), (2, 4), (2, 4)]
    assert work_of("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (2, 10, 4)).multiply_adds == 20 * (4 * 12 + 4 * 16 + 16)


def test_unknown_work_is_named_and_views_move_nothing():
    assert work_of("CUSTOM", [(1, 8)], (1, 8)).unknown == ("CUSTOM",)
    assert work_of("RESHAPE", [(1, 8), (2,)], (2, 4)).bytes_moved == 0


def test_bytes_follow_the_types_and_bits():
    work = work_of("FULLY_CONNECTED", [(2, 5), (3, 5), (3,)], (2, 3), dtype="float32")
    assert (work.ops[0].weight_bytes, work.ops[0].input_bytes, work.ops[0].output_bytes) == (4 * 18, 4 * 10, 4 * 6)
    assert work.intensity == 30 / (4 * 34) and work.batch == 2
    packed = Tensor(index=0, name="", shape=(3, 5), shape_signature=(3, 5), dtype="int4")
    assert tensor_bytes(packed) == 8  # 15 values of half a byte


def test_int8_moves_a_quarter_of_the_bytes_for_the_same_work():
    int8, floating = (workload(read(golden(f"digits_{name}"))) for name in ("int8", "float32"))
    # By hand: 3x3x1, depthwise 3x3, 1x1x12 and 3x3x12 to 8x8x12 outputs; 48 to 10.
    assert int8.multiply_adds == floating.multiply_adds == 64 * 12 * (9 + 9 + 12 + 108) + 480
    assert 3.5 < floating.bytes_moved / int8.bytes_moved <= 4


def test_peak_of_activations_counts_tensors_that_are_alive_together():
    """0 (100) -> A -> 1 (300) -> B -> 2 (50); C adds 0 and 2 -> 3 (100): B needs 0, 1 and 2 at once."""
    sizes = (100, 300, 50, 100, 999)
    tensors = tuple(
        Tensor(index=i, name=str(i), shape=(size,), shape_signature=(size,), dtype="int8", is_constant=i == 4)
        for i, size in enumerate(sizes)
    )
    edges = (((0, 4), (1,)), ((1,), (2,)), ((0, 2), (3,)))
    ops = tuple(
        Op(index=i, name="ADD", version=1, inputs=inputs, outputs=outputs) for i, (inputs, outputs) in enumerate(edges)
    )
    graph = Subgraph(index=0, name="", tensors=tensors, ops=ops, inputs=(0,), outputs=(3,))
    assert peak_activation_bytes(SimpleNamespace(main_subgraph=graph)) == 450
