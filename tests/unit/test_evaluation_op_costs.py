# SPDX-License-Identifier: Apache-2.0
"""Assignment of profiled kernel times to the ops of a model."""

import numpy as np
import pytest
from golden_models import changed, golden

from tfq import tflite
from tfq.backends.timing import OpEvent
from tfq.evaluation.op_costs import align, op_costs
from tfq.tflite import Op


def inside(*names):
    return [
        OpEvent(name=name, in_delegate=True, index=index, subgraph=0, mean_ms=1.0) for index, name in enumerate(names)
    ]


def ran(index, name, ms=1.0, subgraph=0):
    return OpEvent(name=name, in_delegate=False, index=index, subgraph=subgraph, mean_ms=ms)


def ops(*names):
    return [Op(index=index, name=name, version=1, inputs=(), outputs=()) for index, name in enumerate(names)]


def places(events, of):
    return [None if op is None else op.index for op in align(events, of)]


def test_kernels_go_to_the_ops_of_their_kind_in_order():
    events = inside("Convolution (NHWC, QC8) IGEMM", "Convolution (NHWC, QC8) DWConv", "Add (ND)", "Softmax (NC, F32)")
    assert places(events, ops("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SOFTMAX")) == [0, 1, 2, 3]


def test_a_convolution_of_1x1_is_what_xnnpack_calls_fully_connected():
    events = inside("Fully Connected (NC, F32) GEMM", "Fully Connected (NC, F32) GEMM")
    assert places(events, ops("CONV_2D", "FULLY_CONNECTED")) == [0, 1]


def test_what_is_fused_into_an_op_is_part_of_it():
    events = inside("Add (ND)", "Clamp (NC)", "Static Reshape (NC)", "Static Reshape (NC)", "Add (ND)")
    assert places(events, ops("ADD", "RESHAPE", "ADD")) == [0, 0, 1, 1, 2]


def test_unmatched_ops_and_kernels_are_skipped():
    events = inside("Add (ND)", "Frobnicate (ND)", "Multiply (ND)")
    assert places(events, ops("DEQUANTIZE", "ADD", "SIN", "MUL")) == [1, None, 3]


def test_as_many_as_possible_are_of_their_kind():
    # Choosing the first matching op would assign MUL to the first kernel and leave two kernels without op.
    events = inside("Multiply (ND)", "Add (ND)", "Subtract (ND)")
    assert places(events, ops("ADD", "SUB", "MUL")) == [None, 0, 1]


@pytest.fixture(scope="module")
def digits():
    return tflite.read(golden("digits_int8"))


def all_on_tflite(model):
    return [ran(op.index, op.name, ms=float(op.index + 1)) for op in model.main_subgraph.ops]


def test_the_shares_of_all_ops_are_of_their_sum(digits):
    costs = op_costs(digits, all_on_tflite(digits))
    count = len(digits.main_subgraph.ops)
    assert [cost.index for cost in costs] == list(range(count))
    np.testing.assert_allclose([cost.fraction for cost in costs], np.arange(1, count + 1) / (count * (count + 1) / 2))
    assert {cost.kernel for cost in costs} == {"TFLite"}
    assert [cost.keras_layer for cost in costs] == [op.keras_layer for op in digits.main_subgraph.ops]


def test_a_leftover_kernel_with_weights_prevents_any_assignment(digits):
    costs = op_costs(digits, inside(*["Convolution (NHWC, QC8) IGEMM"] * 40))
    assert all(cost.index is None and cost.keras_layer is None for cost in costs)
    assert sum(cost.fraction for cost in costs) == pytest.approx(1)


def test_a_leftover_op_with_weights_prevents_any_assignment(digits):
    costs = op_costs(digits, inside("Convolution (NHWC, QC8) IGEMM"))
    assert [cost.index for cost in costs] == [None]


def test_ops_that_the_model_does_not_have_are_refused(digits):
    events = all_on_tflite(digits)
    assert "does not have" in op_costs(digits, [*events[:-1], ran(events[-1].index, "CUMSUM")])
    assert "does not have" in op_costs(digits, [ran(999, "CONV_2D")])


def test_kernels_of_a_model_that_calls_subgraphs_are_indistinguishable(digits):
    assert "subgraphs" in op_costs(digits, [ran(0, "CONV_2D", subgraph=1), *inside("Add (ND)")])


def test_ops_of_a_called_subgraph_belong_to_the_calling_op(digits):
    costs = op_costs(digits, [*all_on_tflite(digits), ran(0, "ADD", ms=100.0, subgraph=1)])
    assert sum(cost.ms for cost in costs) == sum(event.mean_ms for event in all_on_tflite(digits))


def test_a_delegates_own_node_is_not_an_op(digits):
    model = tflite.read(changed(golden("digits_int8"), lambda model: None))
    count = len(model.main_subgraph.ops)
    costs = op_costs(model, [*all_on_tflite(model), ran(count, "DELEGATE")])
    assert len(costs) == count
