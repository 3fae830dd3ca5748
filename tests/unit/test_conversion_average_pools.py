# SPDX-License-Identifier: Apache-2.0
"""Average pools, whose means LiteRT's GPU accelerator rounds otherwise, and their exact replacement."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from average_pools import every_sum, model
from golden_models import changed
from messages import warned

import tfq
from tfq import tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.conversion.average_pools import bias_and_factor, with_exact_average_pools


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def op_names(content: bytes) -> list[str]:
    return [op.name for op in tflite.read(content).main_subgraph.ops]


@pytest.mark.parametrize("zero_point", [-128, -1, 0, 1, 50])
@pytest.mark.parametrize("window", [(1, 2), (8, 8), (8, 15)])
def test_replacement_computes_the_same_means_for_every_sum(window, zero_point):
    before, x = model(window, zero_point), every_sum(window)
    after = with_exact_average_pools(before)
    assert op_names(after) == ["DEPTHWISE_CONV_2D"]
    means = run(after, x)
    np.testing.assert_array_equal(means, run(before, x))
    assert len(np.unique(means)) == 256
    assert with_exact_average_pools(after) is after


@pytest.mark.parametrize("number", [2, 120])
def test_halfway_means_move_away_from_zero_and_no_other_mean_crosses(number):
    for zero_point in (-128, -99, -20, -3, -2, -1, 0, 1, 2, 19, 127):
        sums = np.arange(-128 * number, 127 * number + 1)
        bias, factor = bias_and_factor(number, zero_point)
        moved = zero_point + factor * (127.0 * (sums - zero_point * number) + bias)
        halfway = 2 * sums % (2 * number) == number
        expected = np.sign(sums) * ((2 * np.abs(sums) + number) // (2 * number))
        np.testing.assert_array_equal(np.rint(moved), expected)
        from_boundary = np.abs(np.abs(moved - expected) - 0.5)
        # Further than the error of float32 arithmetic on values of this size.
        assert (from_boundary > 4 * np.abs(moved - zero_point) * 2.0**-24).all() and halfway.any()


@pytest.mark.parametrize(
    "settings",
    [
        {"window": (3, 3)},
        {"window": (11, 12)},
        {"window": (2, 2), "padding": "SAME", "rows": 8},
        {"output_scale": 0.05},
    ],
    ids=str,
)
def test_other_pools_stay_unchanged(settings):
    content = model(**settings)
    assert with_exact_average_pools(content) is content


def test_conversion_for_the_gpu_replaces_pools_of_an_int8_file_and_fixes_its_batch():
    def open_batch(edited):
        for tensor in edited.subgraphs[0].tensors:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]

    content = changed(model(), open_batch)
    assert any(tensor.is_dynamic for tensor in tflite.read(content).main_subgraph.tensors)
    with warned("again"):
        converted = tfq.convert(content, config=tfq.ConversionConfig(target="gpu"))
    assert op_names(converted) == ["DEPTHWISE_CONV_2D"]
    assert not audit_model(converted, AuditConfig(require="gpu")).failures
    np.testing.assert_array_equal(run(converted, every_sum()), run(content, every_sum()))
