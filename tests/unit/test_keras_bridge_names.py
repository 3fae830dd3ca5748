# SPDX-License-Identifier: Apache-2.0
"""Names of bridged layers, and the measure of difference, without TensorFlow."""

from types import SimpleNamespace

import numpy as np
import pytest
from messages import refused

from tfq.errors import TfqError
from tfq.keras_bridge.verification import difference
from tfq.keras_bridge.walk import Names, fit
from tfq.keras_bridge.weights import matched


def names_for(*layers):
    return Names(SimpleNamespace(calls=[SimpleNamespace(operation=SimpleNamespace(name=n)) for n in layers], inputs=[]))


def test_the_users_names_stay_and_inner_ones_give_way():
    names = names_for("conv", "conv_1")
    assert names.take("conv", "inner/") == "inner_conv"
    assert names.take("bn", "inner/") == "bn"
    assert names.take("bn", "other/") == "other_bn"
    assert names.take("bn", "other/") == "other_bn_1"
    assert names.take("conv", "") == "conv"


def test_names_are_unique_when_characters_fall_together():
    names = names_for("a b", "a_b")
    assert names.take("a b", "") != names.take("a_b", "")


def test_fit_names_begin_as_tensorflow_wants():
    assert [fit(name) for name in ("_x", "a/b c", "é", "ok.1-2>3")] == ["layer_x", "a_b_c", "layer_", "ok.1-2>3"]


def test_difference_is_relative_to_each_outputs_range_over_all_sets():
    small, large = np.array([0.0, 1.0]), np.array([0.0, 100.0])
    assert difference([[small, large]], [[small + 0.1, large]]) == pytest.approx(0.1)
    assert difference([[small, large]], [[small, large + 0.1]]) == pytest.approx(0.001)
    assert difference([[small], [small * 10]], [[small + 0.1], [small * 10]]) == pytest.approx(0.01)


def test_difference_of_an_almost_constant_output_is_relative_to_magnitude():
    flat = np.array([10.0, 10.0])
    assert difference([[flat]], [[flat + 0.001]]) == pytest.approx(0.01)
    assert difference([[flat * 0]], [[flat * 0]]) == 0.0
    assert difference([[flat * 0]], [[flat]]) == np.inf


def test_difference_keeps_infinities_apart():
    a = np.array([0.0, 1.0, np.inf])
    assert difference([[a]], [[a]]) == 0.0
    assert difference([[a]], [[np.array([0.0, 1.0, 2.0])]]) == np.inf


def variable(name, *shape):
    return SimpleNamespace(name=name, shape=shape)


def test_weights_are_matched_by_their_last_word_in_their_order():
    theirs = [variable("vector_u", 1, 3), variable("kernel", 2, 3), variable("bias", 3), variable("kernel", 3, 3)]
    ours = [
        variable("d/kernel:0", 2, 3),
        variable("d/bias:0", 3),
        variable("e/kernel:0", 3, 3),
        variable("vector_u", 1, 3),
    ]
    assert matched(theirs, ours, "layer 'd'") == [1, 2, 3, 0]
    assert matched([variable("variable", 4)], [variable("l/gamma:0", 4)], "layer 'l'") == [0]


def test_weights_of_other_shapes_or_numbers_are_refused():
    with refused(TfqError, word="kernel"):
        matched([variable("kernel", 2, 3)], [variable("kernel", 3, 2)], "layer 'd'")
    with refused(TfqError, word="1"):
        matched([variable("kernel", 2)], [], "layer 'd'")
