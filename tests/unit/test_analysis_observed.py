# SPDX-License-Identifier: Apache-2.0
"""The score that occlusion observes: a value of an output, or a class of the positions of a map."""

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq import tflite
from tfq.analysis.observed import ONE_VALUE, POSITIONS, observe
from tfq.config import ExplainConfig
from tfq.errors import InputError

# Its output is a softmax of 10 classes.
MODEL = tflite.read(golden("digits_int8"))


def maps(classes, seed=0):
    """Return probabilities (n, height, width, 10) whose largest class is that of `classes`, (n, height, width)."""
    values = np.random.default_rng(seed).uniform(0.1, 0.2, (*np.shape(classes), 10))
    np.put_along_axis(values, np.asarray(classes)[..., None], 1.0, axis=-1)
    return values / values.sum(axis=-1, keepdims=True)


def test_the_largest_value_of_a_vector_is_observed():
    values = np.random.default_rng(0).uniform(size=(4, 10))
    observed = observe(values, MODEL, 0, ExplainConfig())
    assert observed.targets.tolist() == values.argmax(axis=1).tolist() and observed.description == ONE_VALUE
    np.testing.assert_array_equal(
        observed.scores(values[[2, 2, 0]], np.array([2, 2, 0])), values.max(axis=1)[[2, 2, 0]]
    )


def test_the_largest_class_of_a_map_other_than_the_background_is_observed():
    classes = np.zeros((2, 4, 4), int)
    classes[0, 0], classes[0, 1, :3] = 7, 2
    observed = observe(maps(classes), MODEL, 0, ExplainConfig())
    assert observed.targets.tolist() == [7, 0] and observed.description == POSITIONS


def test_the_score_of_a_map_is_the_mean_over_the_positions_of_the_whole_input():
    classes = np.random.default_rng(1).integers(0, 4, (3, 4, 4))
    observed = observe(maps(classes), MODEL, 0, ExplainConfig())
    hidden, examples = maps(np.random.default_rng(2).integers(0, 4, (5, 4, 4)), seed=3), np.array([0, 0, 1, 2, 2])
    expected = []
    for values, example in zip(hidden, examples, strict=True):
        target = observed.targets[example]
        chosen = [values[y, x, target] for y in range(4) for x in range(4) if classes[example, y, x] == target]
        expected.append(sum(chosen) / len(chosen))
    np.testing.assert_allclose(observed.scores(hidden, examples), expected, rtol=1e-12)


def test_a_class_that_occurs_nowhere_is_observed_everywhere():
    values = maps(np.zeros((1, 4, 4), int))
    observed = observe(values, MODEL, 0, ExplainConfig(target=3))
    np.testing.assert_allclose(observed.scores(values, np.array([0])), values[..., 3].mean())


def test_the_largest_coordinate_of_boxes_is_refused():
    boxes = np.random.default_rng(0).uniform(0, 2, (2, 64, 4))
    with refused(InputError, field="analysis.explain.output", got=(64, 4), expected=MODEL.output_names):
        observe(boxes, MODEL, 0, ExplainConfig())
    name = MODEL.output_names[0]
    for config in (ExplainConfig(output=name), ExplainConfig(target=int(boxes[0].argmax()))):
        observed = observe(boxes, MODEL, 0, config)
        assert observed.targets[0] == boxes[0].argmax() and observed.positions is None


def test_class_numbers_have_no_score():
    with refused(InputError, field="analysis.explain.output", got="int64"):
        observe(np.zeros((2, 4, 4), np.int64), MODEL, 0, ExplainConfig())


@pytest.mark.parametrize(("shape", "target", "size"), [((2, 10), 10, 10), ((2, 4, 4, 10), 10, 10)])
def test_a_target_that_does_not_exist_is_refused(shape, target, size):
    values = maps(np.zeros(shape[:-1], int)) if len(shape) > 2 else np.zeros(shape)
    with refused(InputError, field="analysis.explain.target", expected=f"below {size}", got=target):
        observe(values, MODEL, 0, ExplainConfig(target=target))
