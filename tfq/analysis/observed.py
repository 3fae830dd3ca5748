# SPDX-License-Identifier: Apache-2.0
"""The score that occlusion observes: one value of an output, or a class of the positions of a map.

An output (n, ...) has one value for each target. A map of classes (n, ..., classes), such as a segmentation, has a
value for each position. Its score for a class is the mean over the positions where the float model predicts that class
for the whole input.

Source of the mean over positions: Vinogradova et al. 2020, "Towards interpretable semantic segmentation via
gradient-weighted class activation mapping", which sums the logits of a class over the pixels of a set.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.config import ExplainConfig
from tfq.errors import InputError
from tfq.evaluation.classes import is_class_vector, num_classes

ONE_VALUE = "the target's value in the output"
POSITIONS = "the mean value of the target class over the positions where the float model predicts it"


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What is observed of n examples.

    Attributes:
        targets: (n,) the index of a value in the flattened output, or the class of the positions.
        positions: (n, positions) the positions whose mean is the score; None unless the output is a map of classes.
    """

    targets: NDArray[np.int64]
    positions: NDArray[np.bool_] | None

    @property
    def description(self) -> str:
        """The definition of the score in words."""
        return ONE_VALUE if self.positions is None else POSITIONS

    def scores(self, values: NDArray, examples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score of each of k outputs.

        Args:
            values: (k, ...) real values.
            examples: (k,) the example that each of them belongs to.
        """
        rows = np.arange(len(values))
        if self.positions is None:
            return np.asarray(values.reshape(len(values), -1)[rows, self.targets[examples]], np.float64)
        by_class = values.reshape(len(values), self.positions.shape[1], -1)
        chosen = np.take_along_axis(by_class, self.targets[examples][:, None, None], axis=2)[..., 0]
        return np.asarray(chosen.mean(axis=1, where=self.positions[examples], dtype=np.float64))


def observe(values: NDArray, model: tflite.Model, output: int, config: ExplainConfig) -> Observed:
    """Choose what is observed.

    Without `config.target` it is the largest value; of a map, the class with the most positions, where class 0 (the
    background in most data sets) is taken only if it is the only one. A class of `config.target` that the float model
    predicts at no position of an example is observed at all its positions.

    Args:
        values: (n, ...) the real values of the float model's output for whole inputs.
        model: The int8 model, whose ops say what the output is.
        output: The index of the output in it.
        config: Settings.

    Raises:
        InputError: The output has no scores that could be observed, or not the target.
    """
    name = model.output_names[output]
    if values.dtype.kind in "iub":
        raise InputError(
            f"analysis.explain: output {name!r} has class numbers ({values.dtype}), which have no score that could "
            "fall. Analyze a file that ends before its argmax",
            field="analysis.explain.output",
            expected="scores",
            got=str(values.dtype),
        )
    graph = model.main_subgraph
    classes = num_classes(values)
    num_positions = values.size // len(values) // classes
    if num_positions > 1 and is_class_vector(graph, graph.outputs[output], values):
        return _positions(values.reshape(len(values), num_positions, classes), config)
    if num_positions > 1 and not config.output and config.target is None:
        names = ", ".join(model.output_names)
        raise InputError(
            f"analysis.explain: output {name!r} of shape {list(values.shape[1:])} is not known to have scores, so its "
            "largest value may mean nothing, as in boxes. Name the output with scores in analysis.explain.output "
            f"({names}), or the value in analysis.explain.target",
            field="analysis.explain.output",
            expected=tuple(model.output_names),
            got=values.shape[1:],
        )
    flat = values.reshape(len(values), -1)
    if config.target is None:
        return Observed(targets=np.asarray(flat.argmax(axis=1), np.int64), positions=None)
    _check_target(config.target, flat.shape[1], "values")
    return Observed(targets=np.full(len(values), config.target, np.int64), positions=None)


def _positions(values: NDArray, config: ExplainConfig) -> Observed:
    """Choose the class of each example. values: (n, positions, classes)."""
    n, _, classes = values.shape
    predicted = values.argmax(axis=2)
    counts = np.stack([(predicted == number).sum(axis=1) for number in range(classes)], axis=1)
    if config.target is None:
        foreground = counts[:, 1:]
        targets = np.where(foreground.any(axis=1), 1 + foreground.argmax(axis=1), 0)
    else:
        _check_target(config.target, classes, "classes")
        targets = np.full(n, config.target)
    positions = predicted == targets[:, None]
    positions |= ~positions.any(axis=1, keepdims=True)
    return Observed(targets=targets.astype(np.int64), positions=positions)


def _check_target(target: int, size: int, what: str) -> None:
    if target >= size:
        raise InputError(
            f"analysis.explain.target={target}: the output has {size} {what}, counted from 0",
            field="analysis.explain.target",
            expected=f"below {size}",
            got=target,
        )
