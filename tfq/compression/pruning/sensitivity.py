# SPDX-License-Identifier: Apache-2.0
"""Sensitivity analysis for pruning: measure each layer's effect on the outputs, and allocate sparsity by it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.graph import cloned, named_layers, require_graph_model
from tfq.compression.pruning.masks import Masks
from tfq.compression.pruning.prunable import layer_reasons, prunable_weights
from tfq.config import PruneConfig
from tfq.data import Split, as_split, bind_inputs
from tfq.errors import InputError, TfqError
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import without_wrappers
from tfq.progress import stage

LEVELS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
EXAMPLES = 64
MEASURE = (
    "mean squared change of the logits when only this layer is pruned, divided by the variance of the logits over the "
    "examples (for outputs that are probabilities: of their centered logarithms)"
)


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """The effect of pruning single layers on the outputs.

    Attributes:
        levels: The sparsities that each layer was pruned to.
        errors: Layer -> the error at each of `levels`.
        sizes: Layer -> number of its prunable weights.
        examples: Number of examples that the errors were measured on.
        skipped: Layer -> why it was not measured.
        measure: Definition of the error.
    """

    levels: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]
    sizes: dict[str, int]
    examples: int
    skipped: dict[str, str]
    measure: str = MEASURE

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "measure": self.measure,
            "examples": self.examples,
            "levels": list(self.levels),
            "layers": {
                name: {"weights": self.sizes[name], "errors": list(errors)} for name, errors in self.errors.items()
            },
            "skipped": dict(self.skipped),
        }

    def to_text(self) -> str:
        """Return the table as text, one line per layer, the most sensitive layer first."""
        width = max(len(name) for name in self.errors)
        order = sorted(self.errors, key=lambda name: -sum(self.errors[name]))
        head = f"{'layer':<{width}} {'weights':>9} " + " ".join(f"{level:>8.0%}" for level in self.levels)
        lines = [
            f"{name:<{width}} {self.sizes[name]:>9,} " + " ".join(f"{error:>8.2g}" for error in self.errors[name])
            for name in order
        ]
        return "\n".join([f"{self.measure}; {self.examples} examples", head, *lines])


@in_strategy
@stage("measuring the sensitivity of layers")
def sensitivity(
    model: Any,
    calibration: Any,
    levels: Sequence[float] = LEVELS,
    *,
    config: PruneConfig | None = None,
    layers: Sequence[str] | None = None,
    limit: int = EXAMPLES,
) -> SensitivityTable:
    """Measure how the outputs change when one layer at a time is pruned, without training.

    With y the outputs of the model and y' the outputs with one layer pruned, the error is

        mean((y' - y)^2) / mean((y - mean(y))^2)

    where mean(y) is over the examples. For several outputs it is the mean of their errors. Outputs that are
    probabilities (nonnegative, sum 1) are replaced by log(p) minus its mean per example, which equals the logits up to
    a constant.

    Args:
        model: Functional or sequential tf_keras model. It is not modified.
        calibration: Representative inputs, in any form that `tfq.data.as_split` accepts.
        levels: Ascending sparsities above 0 and below 1.
        config: Its block size is used for the masks. m:n sparsity is not supported.
        layers: Names of the layers to measure; None is all prunable layers.
        limit: Number of examples to use from `calibration`, which must hold at least 2.

    Raises:
        InputError: The levels or the examples are invalid, or the outputs are equal for all examples.
        TfqError: The outputs of a pruned model are NaN or infinite.
    """
    config = config or PruneConfig()
    model = without_wrappers(model, "sensitivity")
    if config.sparsity_m_by_n:
        raise InputError(
            "sensitivity: m:n masks have a single sparsity and cannot be measured at several levels: leave "
            "sparsity_m_by_n out",
            field="compression.prune.sparsity_m_by_n",
            expected=(),
            got=config.sparsity_m_by_n,
        )
    require_graph_model(model, "sensitivity")
    levels = _checked_levels(levels)
    reasons = layer_reasons(model, config)
    chosen = [name for name, reason in reasons.items() if reason is None and (layers is None or name in layers)]
    skipped = {name: reason or "not among the requested layers" for name, reason in reasons.items()}
    clone, _ = cloned(model)
    inputs = _inputs(clone, calibration, limit)
    reference = _logits(clone, inputs)
    power = [float(np.mean((item - item.mean(axis=0)) ** 2)) for item in reference]
    if not all(value > 0 and np.isfinite(value) for value in power):
        raise InputError(
            f"sensitivity: the outputs of {model.name!r} are equal for all {len(reference[0])} examples, or not "
            "finite: expected a trained model and examples that differ",
            field="calibration",
            expected="examples that differ",
        )
    weights = {name: prunable_weights(layer) or [] for name, layer in named_layers(clone) if name in chosen}
    errors = {
        name: tuple(
            _relative_error(name, reference, outputs, power)
            for outputs in _pruned_outputs(clone, inputs, Masks({name: weights[name]}, config), levels)
        )
        for name in chosen
    }
    return SensitivityTable(
        levels=levels,
        errors=errors,
        sizes={name: sum(int(np.prod(weight.shape)) for weight in weights[name]) for name in chosen},
        examples=len(reference[0]),
        skipped={name: reason for name, reason in skipped.items() if name not in chosen},
    )


def allocate(table: SensitivityTable, final_sparsity: float) -> dict[str, float]:
    """Return the layer-wise sparsities with the smallest sum of errors for a sparsity over all layers.

    The error of each layer as a function of its sparsity is replaced by the lower convex hull of (0, 0) and the
    measured points. The segments of all hulls are added in the order of their slopes (error per zeroed weight) until
    the required number of zeros is reached; the last segment is used in part. This minimizes the sum of the hulls,
    with the last slope as the Lagrange multiplier. It assumes that the errors of different layers add up.

    Args:
        table: The measured errors.
        final_sparsity: Fraction of zeros over all weights in the table.

    Returns:
        Layer -> sparsity.

    Raises:
        InputError: `final_sparsity` is above the highest measured level.
    """
    if final_sparsity > table.levels[-1]:
        raise InputError(
            f"sensitivity: final_sparsity {final_sparsity:g} is above the highest level {table.levels[-1]:g}: measure "
            "the sensitivity at a higher level",
            field="compression.prune.final_sparsity",
            expected=table.levels[-1],
            got=final_sparsity,
        )
    segments = []
    for index, (name, errors) in enumerate(table.errors.items()):
        hull = _lower_hull([(0.0, 0.0), *zip(table.levels, errors, strict=True)])
        for (start, low), (end, high) in itertools.pairwise(hull):
            zeros = (end - start) * table.sizes[name]
            segments.append(((high - low) / zeros, index, start, name, zeros))
    remaining = final_sparsity * sum(table.sizes.values())
    zeros_by_layer = dict.fromkeys(table.errors, 0.0)
    for _, _, _, name, zeros in sorted(segments):
        added = min(zeros, remaining)
        zeros_by_layer[name] += added
        remaining -= added
    return {name: zeros / table.sizes[name] for name, zeros in zeros_by_layer.items()}


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the lower convex hull of points that are sorted by x."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _checked_levels(levels: Sequence[float]) -> tuple[float, ...]:
    checked = tuple(float(level) for level in levels)
    if not checked or list(checked) != sorted(set(checked)) or not 0 < checked[0] <= checked[-1] < 1:
        raise InputError(
            f"sensitivity: levels {list(levels)}: expected ascending sparsities above 0 and below 1",
            field="levels",
            expected="ascending sparsities above 0 and below 1",
            got=levels,
        )
    return checked


def _inputs(model: Any, calibration: Any, limit: int) -> Any:
    import tensorflow as tf

    split = as_split(calibration, limit=limit)
    examples = split if isinstance(split, Split) else next(split.pieces())
    if examples.num_examples < 2:
        raise InputError(
            "sensitivity: got 1 example: expected at least 2 examples with different outputs (64 are recommended)",
            field="calibration",
            expected="at least 2 examples",
            got=1,
        )
    arrays = bind_inputs(examples.inputs, model.input_names)
    tensors = [tf.cast(array, tensor.dtype) for array, tensor in zip(arrays, model.inputs, strict=True)]
    return tensors if len(tensors) > 1 else tensors[0]


def _pruned_outputs(model: Any, inputs: Any, masks: Masks, levels: Sequence[float]) -> Any:
    """Yield the logits with the weights of `masks` pruned to each level. The weights are restored at the end."""
    pairs = [pair for pairs in masks.pairs.values() for pair in pairs]
    original = [weight.numpy() for weight, _ in pairs]
    try:
        for level in levels:
            masks.update(dict.fromkeys(masks.pairs, level))
            masks.apply()
            yield _logits(model, inputs)
            for (weight, _), value in zip(pairs, original, strict=True):
                weight.assign(value)
    finally:
        for (weight, _), value in zip(pairs, original, strict=True):
            weight.assign(value)


def _logits(model: Any, inputs: Any) -> list[NDArray[np.float64]]:
    import tensorflow as tf

    outputs = tf.nest.flatten(model.predict_on_batch(inputs))
    return [_log_of_probabilities(np.asarray(output, np.float64)) for output in outputs]


def _log_of_probabilities(output: NDArray[np.float64]) -> NDArray[np.float64]:
    is_distribution = (
        output.ndim > 1
        and output.shape[-1] > 1
        and bool((output >= 0).all())
        and np.allclose(output.sum(axis=-1), 1, atol=1e-3)
    )
    if not is_distribution:
        return output
    logs = np.log(np.maximum(output, np.finfo(np.float32).tiny))
    return logs - logs.mean(axis=-1, keepdims=True)


def _relative_error(name: str, reference: Sequence[NDArray], got: Sequence[NDArray], power: Sequence[float]) -> float:
    errors = [float(np.mean((new - old) ** 2)) / scale for old, new, scale in zip(reference, got, power, strict=True)]
    error = float(np.mean(errors))
    if not np.isfinite(error):
        raise TfqError(
            f"sensitivity: the outputs are NaN or infinite when {name} is pruned",
            field="model",
            expected="finite outputs",
            got=name,
        )
    return error


def allocate_by_sensitivity(
    model: Any, calibration: Any, config: PruneConfig, layers: Sequence[str]
) -> tuple[Mapping[str, float], SensitivityTable]:
    """Measure the sensitivity of `layers` and allocate `config.final_sparsity` by it.

    Returns:
        (layer -> sparsity, the measured table).

    Raises:
        InputError: `calibration` is None.
    """
    if calibration is None:
        raise InputError(
            "prune: allocation=sensitivity measures the effect of pruning on the outputs, and needs examples: pass "
            "calibration (a Split, an array or a dict of arrays)",
            field="calibration",
            expected="examples",
            got=None,
        )
    table = sensitivity(model, calibration, config=config, layers=layers)
    return allocate(table, config.final_sparsity), table
