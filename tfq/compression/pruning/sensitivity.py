# SPDX-License-Identifier: Apache-2.0
"""How much a model's outputs change when one layer alone is pruned, and which layer gets which sparsity by that."""

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

LEVELS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
EXAMPLES = 64
MEASURE = (
    "mean squared change of the logits by pruning this layer alone, over their variance between examples "
    "(of outputs that are probabilities: of their logarithms, centred)"
)


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """What pruning one layer alone does to the outputs.

    errors: layer -> the measure at each of `levels`, the sparsities of that layer. sizes: layer -> how many weights
    pruning masks in it. examples: that it was measured on. skipped: layer -> why it was not measured.
    """

    levels: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]
    sizes: dict[str, int]
    examples: int
    skipped: dict[str, str]
    measure: str = MEASURE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
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
        """For the terminal: a line a layer, the most sensitive first."""
        width = max(len(name) for name in self.errors)
        order = sorted(self.errors, key=lambda name: -sum(self.errors[name]))
        head = f"{'layer':<{width}} {'weights':>9} " + " ".join(f"{level:>8.0%}" for level in self.levels)
        lines = [
            f"{name:<{width}} {self.sizes[name]:>9,} " + " ".join(f"{error:>8.2g}" for error in self.errors[name])
            for name in order
        ]
        return "\n".join([f"{self.measure}; {self.examples} examples", head, *lines])


def sensitivity(
    model: Any,
    calibration: Any,
    levels: Sequence[float] = LEVELS,
    *,
    config: PruneConfig | None = None,
    layers: Sequence[str] | None = None,
    limit: int = EXAMPLES,
) -> SensitivityTable:
    """Prunes each layer alone to each of `levels`, without training, and measures what becomes of the outputs.

    model: functional or sequential tf_keras model; it stays as it is.
    calibration: representative inputs, all that `tfq.data.as_split` takes; the first `limit` are used, at least 2.
    levels: sparsities, rising, above 0 and below 1. config: whose block_size masks are made with.
    layers: names of the layers to measure; None is all that can be pruned.
    With y the outputs and y' those of the pruned model, the measure is mean((y' - y)^2) / mean((y - mean(y))^2), with
    mean(y) over the examples; of several outputs, their mean. Outputs that are probabilities (not negative, sum 1)
    count as log(p), centred for each example, which are the logits but for a constant.
    Raises InputError on levels and data that do not fit, and where all examples give the same outputs.
    """
    config = config or PruneConfig()
    if config.sparsity_m_by_n:
        raise InputError(
            "sensitivity: m:n masks have one sparsity only, and no levels: leave sparsity_m_by_n out",
            field="compression.prune.sparsity_m_by_n",
            expected=(),
            got=config.sparsity_m_by_n,
        )
    require_graph_model(model, "sensitivity")
    levels = _checked_levels(levels)
    reasons = layer_reasons(model, config)
    chosen = [name for name, reason in reasons.items() if reason is None and (layers is None or name in layers)]
    skipped = {name: reason or "not among the layers asked for" for name, reason in reasons.items()}
    clone, _ = cloned(model)
    inputs = _inputs(clone, calibration, limit)
    wanted = _logits(clone, inputs)
    power = [float(np.mean((item - item.mean(axis=0)) ** 2)) for item in wanted]
    if not all(value > 0 and np.isfinite(value) for value in power):
        raise InputError(
            f"sensitivity: {model.name!r} answers all {len(wanted[0])} examples alike, or not with finite numbers: "
            "wanted a trained model, and examples that differ",
            field="calibration",
            expected="examples that differ",
        )
    weights = {name: prunable_weights(layer) or [] for name, layer in named_layers(clone) if name in chosen}
    errors = {
        name: tuple(
            _relative_error(name, wanted, outputs, power)
            for outputs in _pruned_outputs(clone, inputs, Masks({name: weights[name]}, config), levels)
        )
        for name in chosen
    }
    return SensitivityTable(
        levels=levels,
        errors=errors,
        sizes={name: sum(int(np.prod(weight.shape)) for weight in weights[name]) for name in chosen},
        examples=len(wanted[0]),
        skipped={name: reason for name, reason in skipped.items() if name not in chosen},
    )


def allocate(table: SensitivityTable, final_sparsity: float) -> dict[str, float]:
    """Layer -> sparsity, so that of all weights in the table `final_sparsity` are zero, at the least sum of errors.

    Each layer's errors become their lower convex hull over (0, 0) and the levels; the segments of all hulls are taken
    by rising slope (error a weight) until the zeros suffice, the last one in part. On these hulls no allocation has a
    smaller sum (the slopes are the Lagrange multiplier). That errors of layers add up is an assumption.
    Raises InputError where final_sparsity is above the highest level.
    """
    if final_sparsity > table.levels[-1]:
        raise InputError(
            f"sensitivity: final_sparsity {final_sparsity:g} is above the highest level {table.levels[-1]:g}: measure "
            "a higher one",
            field="compression.prune.final_sparsity",
            expected=table.levels[-1],
            got=final_sparsity,
        )
    segments = []
    for place, (name, errors) in enumerate(table.errors.items()):
        hull = _lower_hull([(0.0, 0.0), *zip(table.levels, errors, strict=True)])
        for (start, low), (end, high) in itertools.pairwise(hull):
            zeros = (end - start) * table.sizes[name]
            segments.append(((high - low) / zeros, place, start, name, zeros))
    left = final_sparsity * sum(table.sizes.values())
    zeros_of = dict.fromkeys(table.errors, 0.0)
    for _, _, _, name, zeros in sorted(segments):
        taken = min(zeros, left)
        zeros_of[name] += taken
        left -= taken
    return {name: zeros / table.sizes[name] for name, zeros in zeros_of.items()}


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the lower convex hull of points that are sorted by x."""
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
            f"sensitivity: levels {list(levels)}: expected rising sparsities above 0 and below 1",
            field="levels",
            expected="rising sparsities above 0 and below 1",
            got=levels,
        )
    return checked


def _inputs(model: Any, calibration: Any, limit: int) -> Any:
    import tensorflow as tf

    split = as_split(calibration, limit=limit)
    examples = split if isinstance(split, Split) else next(split.pieces())
    if examples.num_examples < 2:
        raise InputError(
            "sensitivity: got 1 example: expected at least 2, and better 64, for outputs that differ",
            field="calibration",
            expected="at least 2 examples",
            got=1,
        )
    arrays = bind_inputs(examples.inputs, model.input_names)
    provided = [tf.cast(array, tensor.dtype) for array, tensor in zip(arrays, model.inputs, strict=True)]
    return provided if len(provided) > 1 else provided[0]


def _pruned_outputs(model: Any, inputs: Any, masks: Masks, levels: Sequence[float]) -> Any:
    """The logits with the weights of `masks` pruned to each level in turn; after the last, the weights are back."""
    pairs = [pair for pairs in masks.pairs.values() for pair in pairs]
    before = [weight.numpy() for weight, _ in pairs]
    try:
        for level in levels:
            masks.update(dict.fromkeys(masks.pairs, level))
            masks.apply()
            yield _logits(model, inputs)
            for (weight, _), value in zip(pairs, before, strict=True):
                weight.assign(value)
    finally:
        for (weight, _), value in zip(pairs, before, strict=True):
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


def _relative_error(name: str, wanted: Sequence[NDArray], got: Sequence[NDArray], power: Sequence[float]) -> float:
    errors = [float(np.mean((new - old) ** 2)) / scale for old, new, scale in zip(wanted, got, power, strict=True)]
    error = float(np.mean(errors))
    if not np.isfinite(error):
        raise TfqError(
            f"sensitivity: with {name} pruned, the outputs are NaN or infinite",
            field="model",
            expected="finite outputs",
            got=name,
        )
    return error


def allocated(
    model: Any, calibration: Any, config: PruneConfig, layers: Sequence[str]
) -> tuple[Mapping[str, float], SensitivityTable]:
    """For allocation=sensitivity: (layer -> sparsity, the table it was chosen by).

    Raises InputError without examples.
    """
    if calibration is None:
        raise InputError(
            "prune: allocation=sensitivity measures what pruning does to the outputs, and needs examples for it: give "
            "calibration (a Split, an array or a dict of arrays)",
            field="calibration",
            expected="examples",
            got=None,
        )
    table = sensitivity(model, calibration, config=config, layers=layers)
    return allocate(table, config.final_sparsity), table
