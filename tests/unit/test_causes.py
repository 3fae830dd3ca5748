# SPDX-License-Identifier: Apache-2.0
"""Causes of a collapse in graphs and values written by hand: each kind, and a correct graph next to it."""

import numpy as np
import pytest

from tfq.ptq import causes
from tfq.ptq.causes import TensorFacts, cause_of, op_label
from tfq.tflite import Op, Subgraph, Tensor


def tensor(index, scale=None, *, shape=(1, 4), zero_point=0, constant=False, dtype=None):
    return Tensor(
        index=index,
        name=f"t{index}",
        shape=shape,
        shape_signature=shape,
        dtype=dtype or ("float32" if scale is None else "int8"),
        scale=() if scale is None else (scale,),
        zero_point=() if scale is None else (zero_point,),
        is_constant=constant,
    )


def graph(ops, tensors, inputs=(0,)):
    """Return a graph. ops: (name, inputs, outputs); each op is in a layer named after it."""
    return Subgraph(
        index=0,
        name="main",
        tensors=tuple(tensors),
        ops=tuple(
            Op(index=index, name=name, version=1, inputs=read, outputs=written, keras_layer=f"layer{index}")
            for index, (name, read, written) in enumerate(ops)
        ),
        inputs=tuple(inputs),
        outputs=ops[-1][2],
    )


def between(low, high, **more):
    return TensorFacts(minimum=low, maximum=high, **more)


def detection_head(scale_of_scores, pixels=550.0):
    """Boxes and scores; the scores are requantized and reshaped before they are joined."""
    joined = pixels / 255
    scales = [0.01, joined, scale_of_scores, joined, joined, joined]
    tensors = [tensor(index, scale, zero_point=-128) for index, scale in enumerate(scales)]
    ops = [
        ("CONV_2D", (0,), (1,)),
        ("LOGISTIC", (0,), (2,)),
        ("QUANTIZE", (2,), (3,)),
        ("RESHAPE", (3,), (4,)),
        ("CONCATENATION", (1, 4), (5,)),
    ]
    return graph(ops, tensors), {1: between(0, pixels), 2: between(0, 0.9), 5: between(0, pixels)}


@pytest.mark.parametrize("op", [2, 3, 4])
def test_an_unequal_join_is_named_from_every_op_on_the_way(op):
    built, facts = detection_head(1 / 256)
    cause = cause_of(built, op, facts)
    assert (cause.kind, cause.op_index) == (causes.UNEQUAL_JOIN, 4)
    assert op_label(built, 4) in cause.message and op_label(built, 1) in cause.message
    assert {"scheme": "int16x8"} in cause.remedies


def test_a_join_of_equal_ranges_is_not_a_cause():
    built, facts = detection_head(1 / 256, pixels=1.0)
    assert cause_of(built, 4, facts).kind == causes.UNKNOWN


@pytest.mark.parametrize("op", ["SELECT_V2", "ADD", "PADV2"])
def test_a_mask_constant_is_named_at_the_op_that_joins_it(op):
    step = 1e9 / 255
    tensors = [tensor(0, 0.1), tensor(1, step), tensor(2, step, zero_point=127, constant=True), tensor(3, step)]
    tensors += [tensor(4, None, dtype="bool", constant=True), tensor(5, 1 / 256, zero_point=-128)]
    inputs = {"SELECT_V2": (4, 1, 2), "ADD": (1, 2), "PADV2": (1, 4, 2)}[op]
    built = graph([("MUL", (0, 0), (1,)), (op, inputs, (3,)), ("SOFTMAX", (3,), (5,))], tensors)
    facts = {0: between(-3, 3), 1: between(-10, 10), 3: between(-1e9, 10), 5: between(0, 1)}
    for asked in (1, 2):
        cause = cause_of(built, asked, facts)
        assert (cause.kind, cause.op_index) == (causes.MASK_CONSTANT, 1)
    tensors[1:4] = [tensor(1, 0.2), tensor(2, 0.2, constant=True), tensor(3, 0.2)]
    bounded = graph([("MUL", (0, 0), (1,)), (op, inputs, (3,)), ("SOFTMAX", (3,), (5,))], tensors)
    assert cause_of(bounded, 1, {**facts, 3: between(-22, 10)}).kind == causes.UNKNOWN


@pytest.mark.parametrize("op", ["LOG", "RSQRT", "SQRT"])
def test_a_wide_dynamic_range_is_named_at_the_steep_op(op):
    built = graph([(op, (0,), (1,))], [tensor(0, 0.02), tensor(1, 0.1)])
    cause = cause_of(built, 0, {0: between(1e-6, 5.0), 1: between(-14, 2)})
    assert cause.kind == causes.WIDE_DYNAMIC_RANGE
    assert cause.remedies[0] == {"float_layers": ("layer0",)} and "layer0" in cause.message
    assert cause_of(built, 0, {0: between(1.0, 2.5), 1: between(0, 2)}).kind == causes.UNKNOWN


@pytest.mark.parametrize(("op", "inputs"), [("MUL", (0, 0)), ("SQUARED_DIFFERENCE", (0, 2)), ("EXP", (0,))])
def test_powers_that_leave_most_values_below_a_step_are_named(op, inputs):
    built = graph([(op, inputs, (1,))], [tensor(0, 0.02), tensor(1, 0.1), tensor(2, 0.02, constant=True)])
    wide = between(0, 12, median_magnitude=0.01)
    assert cause_of(built, 0, {1: wide}).kind == causes.WIDE_DYNAMIC_RANGE
    assert cause_of(built, 0, {1: between(0, 12, median_magnitude=8.0)}).kind == causes.UNKNOWN
    # A product of two tensors is not a power.
    product = graph([("MUL", (0, 2), (1,))], [tensor(0, 0.02), tensor(1, 0.1), tensor(2, 0.02, constant=True)])
    assert cause_of(product, 0, {1: wide}).kind == causes.UNKNOWN


def test_an_input_of_many_scales_is_named_after_its_normalization():
    tensors = [tensor(0, 2.0), tensor(1, 2.0, constant=True), tensor(2, 2.0), tensor(3, 0.1, constant=True)]
    built = graph([("SUB", (0, 1), (2,)), ("MUL", (2, 3), (4,))], [*tensors, tensor(4, 0.05)])
    columns = np.array([0.1, 1.0, 10.0, 250.0])
    values = np.stack([-columns, columns])
    facts = {0: TensorFacts.of(values), 2: TensorFacts.of(values), 4: TensorFacts.of(values / columns)}
    cause = cause_of(built, 1, facts)
    assert cause.kind == causes.MIXED_INPUT_SCALES and "'t0'" in cause.message
    assert {"scheme": "int16x8"} in cause.remedies and {"scheme": "dynamic_range"} in cause.remedies
    even = np.stack([-np.ones(4), np.ones(4)])
    sound = {0: TensorFacts.of(even * 250), 2: TensorFacts.of(even * 250), 4: TensorFacts.of(even)}
    assert cause_of(built, 1, sound).kind == causes.UNKNOWN


@pytest.mark.parametrize("between", ["ADD", "SELECT", "MINIMUM"])
def test_a_quantized_index_is_named(between):
    tensors = [tensor(0, 7.84), *(tensor(index, dtype="int32") for index in (1, 2))]
    tensors += [tensor(3, 0.1, constant=True), tensor(4, 0.1)]
    ops = [
        ("CAST", (0,), (1,)),
        (between, (1, 1, 1)[: 3 if between == "SELECT" else 2], (2,)),
        ("GATHER", (3, 2), (4,)),
    ]
    assert cause_of(graph(ops, tensors), 2, {}).kind == causes.INDEX_QUANTIZED
    exact = graph(ops, [tensor(0, 1.0), *tensors[1:]])
    assert cause_of(exact, 2, {}).kind == causes.UNKNOWN
    chosen = graph([("ARG_MAX", (0,), (2,)), ops[2]], tensors)
    assert cause_of(chosen, 1, {}).kind == causes.UNKNOWN


def test_a_dead_tensor_is_named_at_its_op_only():
    tensors = [tensor(0, 0.1), tensor(1, 0.1), tensor(2, 0.1), tensor(3, 0.1)]
    built = graph([("CONV_2D", (0,), (1,)), ("RESHAPE", (1,), (2,)), ("CONV_2D", (2,), (3,))], tensors)
    facts = {0: between(-3, 3), 1: between(0, 0), 2: between(0, 0), 3: between(-1, 1)}
    assert cause_of(built, 0, facts).kind == causes.DEAD
    assert cause_of(built, 2, facts).kind == causes.UNKNOWN


def test_clipping_and_coarse_weights_are_named():
    built = graph([("CONV_2D", (0,), (1,))], [tensor(0, 0.1), tensor(1, 0.1)])
    assert cause_of(built, 0, {1: between(-40, 40)}).kind == causes.CLIPPED
    assert cause_of(built, 0, {1: between(-12, 12)}).kind == causes.UNKNOWN
    assert cause_of(built, 0, {1: between(-12, 12)}, weight_sqnr_db=9.0).kind == causes.WEIGHTS
    assert cause_of(built, 0, {1: between(-12, 12)}, weight_sqnr_db=40.0).kind == causes.UNKNOWN


def test_uneven_channels_are_named():
    built = graph([("CONV_2D", (0,), (1,))], [tensor(0, 0.1), tensor(1, 0.1)])
    uneven = np.array([[-0.1, -0.2, -0.1, -12], [0.1, 0.1, 0.2, 12]])
    assert cause_of(built, 0, {1: TensorFacts.of(uneven)}).kind == causes.UNEVEN_CHANNELS


def test_uneven_channels_before_a_gate_are_not_equalizable():
    for name, kind in {"CONV_2D": causes.UNEVEN_CHANNELS, "LOGISTIC": causes.UNKNOWN}.items():
        built = graph([("CONV_2D", (0,), (1,)), (name, (1,), (2,))], [tensor(i, 0.1) for i in range(3)])
        uneven = np.array([[-0.1, -0.2, -0.1, -12], [0.1, 0.1, 0.2, 12]])
        assert cause_of(built, 1, {1: TensorFacts.of(uneven)}).kind == kind


def test_labels_distinguish_ops_of_one_layer():
    ops = tuple(
        Op(index=index, name="MUL", version=1, inputs=(index,), outputs=(index + 1,), keras_layer="one")
        for index in range(2)
    )
    built = Subgraph(index=0, name="", tensors=tuple(map(tensor, range(3))), ops=ops, inputs=(0,), outputs=(2,))
    assert [op_label(built, index) for index in range(2)] == ["one/MUL (#0)", "one/MUL (#1)"]
    assert causes.tensor_label(built, 0) == "input 't0'"


def test_an_operand_that_a_maximum_never_takes_does_not_matter():
    ops = [("ABS", (0,), (1,)), ("SUB", (0, 0), (2,)), ("MAXIMUM", (1, 2), (3,))]
    built = graph(ops, [tensor(index, 0.1) for index in range(4)])
    low = causes.Diagnosis(built, {1: between(0, 5), 2: between(-50, -40), 3: between(0, 5)})
    assert [low.affects_output(index) for index in (1, 2, 3)] == [True, False, True]
    assert causes.Diagnosis(built, {1: between(0, 5), 2: between(-50, 3), 3: between(0, 5)}).affects_output(2)


def clipped_before(reader, result, *, low=-34.0, high=10.0):
    """Return (graph, facts) of an ADD clipped to [low, high] and read by `reader`, whose output is in `result`."""
    scale = (high - low) / 255
    tensors = [tensor(0, 0.1), tensor(1, 0.1), tensor(2, scale, zero_point=round(-128 - low / scale)), tensor(3, 0.1)]
    tensors += [tensor(4, dtype="bool"), tensor(5, scale, zero_point=round(-128 - low / scale))]
    inputs = {"SELECT_V2": (4, 2, 5), "MAXIMUM": (2, 5), "MINIMUM": (2, 5)}.get(reader, (2,))
    built = graph([("ADD", (0, 1), (2,)), (reader, inputs, (3,))], tensors, inputs=(0, 1, 4, 5))
    return built, {0: between(-5, 5), 1: between(-5, 5), 2: between(-1e9, 10.0), 3: result, 5: between(-10, 10)}


@pytest.mark.parametrize("reader", ["SOFTMAX", "EXP", "SELECT_V2", "MAXIMUM", "REDUCE_MAX", "MAX_POOL_2D"])
def test_clipping_that_no_op_reads_is_not_a_cause(reader):
    built, facts = clipped_before(reader, between(-3, 10))
    assert cause_of(built, 0, facts).kind != causes.CLIPPED


@pytest.mark.parametrize("reader", ["SELECT_V2", "MAXIMUM", "MINIMUM", "TANH", "MUL"])
def test_clipping_that_changes_the_result_is_the_cause(reader):
    built, facts = clipped_before(reader, between(-1e9, 10))
    assert cause_of(built, 0, facts).kind == causes.CLIPPED


def test_a_softmax_whose_largest_scores_are_clipped_is_the_cause():
    built, facts = clipped_before("SOFTMAX", between(0, 1), low=-14.0, high=2.0)
    assert cause_of(built, 0, facts).kind == causes.CLIPPED


def test_an_input_that_is_clipped_is_named():
    built = graph([("TANH", (0,), (1,))], [tensor(0, 0.01), tensor(1, 1 / 128)])
    cause = cause_of(built, 0, {0: between(-50, 50), 1: between(-1, 1)})
    assert cause.kind == causes.CLIPPED and "'t0'" in cause.message
    assert cause_of(built, 0, {0: between(-1.2, 1.2), 1: between(-1, 1)}).kind == causes.UNKNOWN


@pytest.mark.parametrize(("scale", "kind"), [(1e-4, causes.COARSE_COMPARISON), (2.0, causes.COARSE_COMPARISON)])
def test_a_comparison_of_scales_that_its_kernel_cannot_see_is_named(scale, kind):
    tensors = [tensor(0, scale), tensor(1, scale), tensor(2, dtype="bool")]
    built = graph([("GREATER", (0, 1), (2,))], tensors, inputs=(0, 1))
    assert cause_of(built, 0, {}).kind == kind
    good = graph([("GREATER", (0, 1), (2,))], [tensor(0, 0.1), tensor(1, 0.1), tensors[2]], inputs=(0, 1))
    assert cause_of(good, 0, {}).kind == causes.UNKNOWN


@pytest.mark.parametrize(("scale", "zero_point"), [(0.2, 0), (0.1, 5)])
def test_a_copy_between_two_scales_is_named(scale, zero_point):
    ops = [("REVERSE_V2", (0, 1), (2,))]
    axis = tensor(1, dtype="int32", constant=True)
    wrong = graph(ops, [tensor(0, 0.1), axis, tensor(2, scale, zero_point=zero_point)])
    assert cause_of(wrong, 0, {}).kind == causes.UNEQUAL_COPY
    assert cause_of(graph(ops, [tensor(0, 0.1), axis, tensor(2, 0.1)]), 0, {}).kind == causes.UNKNOWN


def test_zeros_that_stand_for_another_number_are_named():
    ops = [("MATRIX_DIAG", (0,), (1,))]
    wrong = graph(ops, [tensor(0, 0.1, zero_point=-128), tensor(1, 0.1, zero_point=-128)])
    cause = cause_of(wrong, 0, {})
    assert cause.kind == causes.ZERO_FILL and "12.8" in cause.message
    assert cause_of(graph(ops, [tensor(0, 0.1), tensor(1, 0.1)]), 0, {}).kind == causes.UNKNOWN


def test_a_dead_tensor_next_to_a_skipped_op_is_named():
    tensors = [tensor(0, 0.1), tensor(1, 8e-9), tensor(2, 0.1)]
    built = graph([("FULLY_CONNECTED", (0,), (1,)), ("ADD", (0, 1), (2,))], tensors)
    alive = {0: between(-1, 1), 1: between(0, 1), 2: between(-1, 1)}
    assert causes.rejected_scale(built, 1, alive) is None
    cause = causes.rejected_scale(built, 1, {**alive, 1: between(0, 0)})
    assert (cause.kind, cause.op_index) == (causes.DEAD, 0) and "ADD" in cause.message
