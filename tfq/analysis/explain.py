# SPDX-License-Identifier: Apache-2.0
"""Compare which parts of the inputs a float and an int8 flatbuffer depend on, by occlusion saliency."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import auditing, progress, tflite
from tfq.analysis.observed import POSITIONS, Observed, observe
from tfq.analysis.occlusion import (
    Grid,
    curve,
    fill_of,
    grid_of,
    importances,
    occluded_at,
    rank_correlation,
    top_overlap,
)
from tfq.artifacts import content_of
from tfq.config import ExplainConfig
from tfq.data import Split, as_split
from tfq.errors import InputError
from tfq.evaluation.class_names import class_names_by_output, names_of_output
from tfq.evaluation.inputs import scale_of
from tfq.evaluation.metric import class_name
from tfq.evaluation.paired import percentile_interval, replicates
from tfq.evaluation.pictures import (
    GAP,
    WHITE,
    brightness,
    encoded,
    fitted,
    nearest,
    rgb,
    side_by_side,
    signed,
    why_no_picture,
)
from tfq.evaluation.reference import matched_outputs, reference_outputs
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.quant_math import dequantize, quantize
from tfq.text_table import aligned, shown
from tfq.typing import Data, PathOrBytes

# Occluded inputs in memory at a time.
_MOST_BYTES = 1 << 26
# An estimate of the time is printed if it is at least this long.
_LONG_SECS = 20
# Sides of the maps in a picture, in pixels.
_SIDE, _STRIP = 48, 12
# Height of the drawing of a signal, in pixels.
_CURVE = 32
_TEXT_ROWS = 10
NOT_SAID = (
    "Occlusion says what the score of one output value depends on if one part of the input is replaced by a constant. "
    "It does not say why, it misses parts that can stand in for each other, and the constant itself can be evidence. "
    "Two models with the same map can be wrong for the same reason."
)
NO_STEP = "the output of the model is not quantized"
MEAN_OF_STEPS = "the score is a mean over positions, which has smaller steps than the output"


@dataclass(frozen=True, kw_only=True)
class ExampleMaps:
    """The maps of one example.

    Attributes:
        index: The place of the example in the data.
        target: The index, in the flattened output, of the value that was observed; for a map of classes the class.
        target_name: The name of this class, if the data source or the file has names of the output's values; or None.
        float_score: That value of the float model on the whole input.
        int8_score: That of the int8 model.
        correlation: Spearman's rank correlation of the float and the int8 map; None if one of them is constant.
        correlation_reason: Why it is None.
        rounded_correlation: The same for the float model with only its output rounded to the int8 model's steps: what
            an int8 model without any other error would have. None if that map is constant or the output not quantized.
        top_overlap: The fraction of the most important parts that both maps have in common.
        unchanged: The fraction of the parts whose occlusion leaves the int8 score exactly as it is.
        below_step: The fraction of the parts whose occlusion changes the float score by less than one step of the int8
            output; None without `Explanation.step`.
        float_map: The importance of each part, nested lists of the shape `Explanation.map_shape`; None if not stored.
        int8_map: The same for the int8 model.
        picture: A PNG file in base64. Images: the image, the float map and the int8 map, from left to right. Signals
            and features: the float map, the int8 map and the input, from top to bottom. Each map is drawn relative to
            its own maximum, a signal between its lowest and highest value, and each feature between its lowest and
            highest value in all examples. None if not stored.
    """

    index: int
    target: int
    float_score: float
    int8_score: float
    correlation: float | None
    correlation_reason: str | None
    rounded_correlation: float | None
    top_overlap: float
    unchanged: float
    below_step: float | None
    float_map: list[object] | None = None
    int8_map: list[object] | None = None
    picture: str | None = None
    target_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation(NotebookRecord):
    """How much the occlusion maps of a float and an int8 flatbuffer agree.

    Attributes:
        examples: Those with the lowest correlation first; those without one at the end.
        kind: "image", "signal" or "features".
        patch: The size of the occluded part along each axis.
        map_shape: The number of parts along each axis.
        fill: The value of the occluded part, in the settings' words.
        output: The name of the observed output.
        step: One step of the int8 output; None if it is not quantized, or the score is a mean over positions.
        step_reason: Why it is None.
        observed: What the score is, in words.
        correlation: The mean rank correlation of all examples that have one.
        interval: The percentiles 2.5 and 97.5 of a bootstrap over the examples.
        interval_reason: Why there is none.
        rounded_correlation: The mean of `ExampleMaps.rounded_correlation`.
        control_correlation: The mean rank correlation of each float map with the int8 map of the next example: what all
            maps have in common, such as an object in the middle. None if it is not defined.
        top_overlap: The mean of all examples.
        num_top: The number of parts that count as most important.
        unchanged: The mean of all examples.
        below_step: The mean of all examples.
        num_examples: The number of examples.
        num_constant: How many examples have no correlation, because a map is constant.
        num_inferences: Inferences of each model.
    """

    examples: tuple[ExampleMaps, ...]
    kind: str
    patch: tuple[int, ...]
    map_shape: tuple[int, ...]
    fill: str
    output: str
    step: float | None
    step_reason: str | None
    observed: str
    correlation: float | None
    interval: tuple[float, float] | None
    interval_reason: str | None
    rounded_correlation: float | None
    control_correlation: float | None
    top_overlap: float
    num_top: int
    unchanged: float
    below_step: float | None
    num_examples: int
    num_constant: int
    num_inferences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    def summary(self) -> list[str]:
        """Return the result as sentences."""
        count = self.num_examples - self.num_constant
        ends = f"95% interval {self.interval[0]:.3f} to {self.interval[1]:.3f}" if self.interval else ""
        lines = [
            f"The mean rank correlation of the float and the int8 map is {_number(self.correlation)} "
            f"({ends or f'no interval: {self.interval_reason}'}; {count} of {self.num_examples} examples)."
        ]
        if self.num_constant:
            lines.append(f"{self.num_constant} examples have no correlation, because a map is constant.")
        lines.append(
            f"For comparison: {_number(self.rounded_correlation)} with only the output rounded to int8's steps, and "
            f"{_number(self.control_correlation)} between a float map and the int8 map of another example."
        )
        lines.append(f"The score is {self.observed}.")
        lines.append(f"{self.top_overlap:.1%} of the {self.num_top} most important parts are the same.")
        lines.append(f"{self.unchanged:.1%} of the parts leave the int8 score exactly as it is" + self._below_step())
        return [*lines, NOT_SAID]

    def _below_step(self) -> str:
        if self.below_step is None:
            return f"; {self.step_reason}."
        return (
            f", and {self.below_step:.1%} change the float score by less than one step of the int8 output "
            f"({self.step:.4g}): the int8 map cannot show those."
        )

    def to_text(self) -> str:
        """Return lines for the terminal: the examples with the lowest correlation, and the summary."""
        columns, rows = self._rows()
        more = len(rows) - _TEXT_ROWS
        table = aligned([columns, *rows[:_TEXT_ROWS]], left=0)
        return "\n".join([*table, *([f"and {more} more examples"] if more > 0 else []), "", *self.summary()])

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the table of `to_text`, with all examples."""
        columns, rows = self._rows()
        return [NotebookTable(columns=tuple(columns), rows=[tuple(row) for row in rows], caption="occlusion saliency")]

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        columns = ["example", "target", "float score", "int8 score", "correlation", "same top parts", "unchanged"]
        return columns, [
            [
                str(item.index),
                str(item.target) if item.target_name is None else shown(item.target_name),
                f"{item.float_score:.4g}",
                f"{item.int8_score:.4g}",
                _number(item.correlation),
                f"{item.top_overlap:.0%}",
                f"{item.unchanged:.0%}",
            ]
            for item in self.examples
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Maps:
    """The scores of n examples, (n, 1 + num_parts), of both models and of the float model with a rounded output."""

    floating: NDArray[np.float64]
    int8: NDArray[np.float64]
    rounded: NDArray[np.float64]
    observed: Observed


def explain(
    quantized: PathOrBytes, floating: PathOrBytes, data: Data, config: ExplainConfig | None = None
) -> Explanation:
    """Compare the occlusion maps of an int8 flatbuffer with those of its float flatbuffer.

    Both files run in LiteRT's interpreter. A part of each example is replaced by `config.fill`, one at a time, and the
    map is how much the score of the target falls. The target is the same for both models. For a map of classes, such as
    a segmentation, the score is the mean of the target class over the positions where the float model predicts it.

    Examples:
        >>> explanation = tfq.explain("model_int8.tflite", "model_float32.tflite", "npz:examples.npz")
        >>> print(explanation.to_text())

    Args:
        quantized: The int8 flatbuffer: its bytes or its path.
        floating: The float flatbuffer that it was converted from: its bytes or its path.
        data: Examples, in any form that `evaluate` accepts. Labels are not used.
        config: Settings; None means `ExplainConfig()`. `enabled` is ignored.

    Returns:
        The agreement of the maps, and the examples where they disagree.

    Raises:
        InputError: The data does not fit the models, the models do not belong together, occlusion is not defined for
            the input, or the output has no scores.
        BackendError: A model cannot run.
    """
    config = config or ExplainConfig()
    quantized = content_of(quantized, "quantized", "an int8 .tflite file")
    floating = auditing.float_source(content_of(floating, "floating", "a float .tflite file"), "analysis.reference")
    split = _in_memory(data, config.limit)
    name = _occluded_input(split, config)
    inputs = split.inputs[name]
    grid = grid_of(inputs.shape[1:], config)
    fill = fill_of(inputs, grid, config.fill)
    parsed = tflite.read(quantized)
    output = _observed_output(parsed, config)
    with progress.stage(f"hiding {grid.num_parts} parts of {split.num_examples} examples"):
        maps = _scores(quantized, floating, split, name, grid, fill, output, config)
    result = _explanation(maps, inputs, grid, parsed, output, config)
    names = names_of_output(class_names_by_output(quantized, split), (output,))
    shape = parsed.main_subgraph.output_tensors[output].shape[1:]
    if len(names) != (shape[-1] if result.observed == POSITIONS else int(np.prod(shape))):
        # The targets are not classes.
        return result
    named = [dataclasses.replace(item, target_name=class_name(item.target, names)) for item in result.examples]
    return dataclasses.replace(result, examples=tuple(named))


def _in_memory(data: Data, limit: int) -> Split:
    pieces = list(as_split(data, limit=limit).take(limit).pieces())
    inputs = {name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in pieces[0].inputs}
    return dataclasses.replace(pieces[0], inputs=inputs, labels=None)


def _occluded_input(split: Split, config: ExplainConfig) -> str:
    names = tuple(split.inputs)
    name = config.input or names[0]
    if name not in names or (len(names) > 1 and not config.input):
        raise InputError(
            f"analysis.explain.input={config.input!r}: the data has the inputs {', '.join(names)}. "
            "Name the one to occlude",
            field="analysis.explain.input",
            expected=names,
            got=config.input,
        )
    if split.inputs[name].dtype.kind not in "fu" or (split.inputs[name].dtype.kind == "u" and config.fill is None):
        raise InputError(
            f"analysis.explain: input {name!r} has {split.inputs[name].dtype} values. A mean of ids means nothing; "
            "occlusion needs real values",
            field="analysis.explain.input",
            expected="real values",
            got=str(split.inputs[name].dtype),
        )
    return name


def _observed_output(model: tflite.Model, config: ExplainConfig) -> int:
    names = tuple(model.output_names)
    if config.output and config.output not in names:
        raise InputError(
            f"analysis.explain.output={config.output!r}: the model has the outputs {', '.join(names)}",
            field="analysis.explain.output",
            expected=names,
            got=config.output,
        )
    return names.index(config.output) if config.output else 0


def _scores(
    quantized: bytes,
    floating: bytes,
    split: Split,
    name: str,
    grid: Grid,
    fill: NDArray,
    output: int,
    config: ExplainConfig,
) -> _Maps:
    """Run both models on all occluded inputs, in pieces of bounded memory."""
    started = time.monotonic()
    parsed, count = tflite.read(quantized), split.num_examples
    whole, whole_got = _outputs(quantized, floating, split, output)
    observed = observe(whole, parsed, output, config)
    tensor = parsed.main_subgraph.output_tensors[output]

    def scored(values: NDArray, got: NDArray, examples: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Return the scores (k,) of the float model, of the int8 model, and of the float model with rounded output."""
        rounded = values
        if tensor.is_quantized:
            scale, zero_point = scale_of("the output", tensor)
            rounded = dequantize(quantize(values, scale, zero_point, tensor.dtype), scale, zero_point)
        return [observed.scores(item, examples) for item in (values, got, rounded)]

    results = []
    row_bytes = (sum(array.nbytes for array in split.inputs.values()) + 2 * whole.nbytes) // count
    step = max(1, _MOST_BYTES // max(1, row_bytes))
    rows = np.arange(count * grid.num_parts)
    for start in progress.counted(range(0, len(rows), step), "occlusion", "piece"):
        examples, parts = np.divmod(rows[start : start + step], grid.num_parts)
        hidden = {key: array[examples] for key, array in split.inputs.items()}
        hidden[name] = occluded_at(hidden[name], 1 + parts, grid, fill)
        results.append(
            scored(*_outputs(quantized, floating, dataclasses.replace(split, inputs=hidden), output), examples)
        )
        if not start and (secs := (time.monotonic() - started) * (len(rows) / step - 1)) >= _LONG_SECS:
            progress.note(f"occlusion: about {secs:.0f} s more. analysis.explain.limit and stride shorten it")
    first = scored(whole, whole_got, np.arange(count))
    columns = [np.concatenate(column).reshape(count, grid.num_parts) for column in zip(*results, strict=True)]
    one, other, third = (np.column_stack([begin, column]) for begin, column in zip(first, columns, strict=True))
    return _Maps(floating=one, int8=other, rounded=third, observed=observed)


def _outputs(quantized: bytes, floating: bytes, data: Split, output: int) -> tuple[NDArray, NDArray]:
    """Return the real values of one output of the float and of the int8 model."""
    reference, result = reference_outputs(floating, data), reference_outputs(quantized, data)
    return matched_outputs(reference, data, result.names, result.outputs)[output], result.outputs[output]


def _explanation(
    maps: _Maps, inputs: NDArray, grid: Grid, model: tflite.Model, output: int, config: ExplainConfig
) -> Explanation:
    tensor = model.main_subgraph.output_tensors[output]
    is_value = maps.observed.positions is None
    # A mean over positions changes by less than a step of the output.
    step = scale_of("the output", tensor)[0] if tensor.is_quantized and is_value else None
    pairs = [(importances(one), importances(other)) for one, other in zip(maps.floating, maps.int8, strict=True)]
    num_top = max(1, round(config.top_fraction * grid.num_parts))
    examples = []
    for index, (one, other) in enumerate(pairs):
        correlation, reason = rank_correlation(one, other)
        examples.append(
            ExampleMaps(
                index=index,
                target=int(maps.observed.targets[index]),
                float_score=float(maps.floating[index, 0]),
                int8_score=float(maps.int8[index, 0]),
                correlation=correlation,
                correlation_reason=reason,
                rounded_correlation=rank_correlation(one, importances(maps.rounded[index]))[0]
                if tensor.is_quantized
                else None,
                top_overlap=top_overlap(one, other, num_top),
                unchanged=float((other == 0).mean()),
                below_step=None if step is None else float((np.abs(one) < step).mean()),
            )
        )
    control = [rank_correlation(one, pairs[place - 1][1])[0] for place, (one, _) in enumerate(pairs)]
    ranked = sorted(examples, key=lambda item: 2.0 if item.correlation is None else item.correlation)
    stored = [
        _with_maps(item, inputs, pairs[item.index], grid) if place < config.pictures else item
        for place, item in enumerate(ranked)
    ]
    known = np.array([item.correlation for item in examples if item.correlation is not None], np.float64)
    interval, interval_reason = _interval(known)
    return Explanation(
        examples=tuple(stored),
        kind=grid.kind,
        patch=grid.patch,
        map_shape=grid.map_shape,
        fill="mean of the examples" if config.fill is None else f"{config.fill:g}",
        output=model.output_names[output],
        step=step,
        step_reason=None if step is not None else NO_STEP if is_value else MEAN_OF_STEPS,
        observed=maps.observed.description,
        correlation=_mean(known),
        interval=interval,
        interval_reason=interval_reason,
        rounded_correlation=_mean([item.rounded_correlation for item in examples]),
        control_correlation=_mean(control) if len(pairs) > 1 else None,
        top_overlap=float(np.mean([item.top_overlap for item in examples])),
        num_top=num_top,
        unchanged=float(np.mean([item.unchanged for item in examples])),
        below_step=_mean([item.below_step for item in examples]),
        num_examples=len(examples),
        num_constant=len(examples) - len(known),
        num_inferences=int(maps.floating.size),
    )


def _interval(values: NDArray[np.float64]) -> tuple[tuple[float, float] | None, str | None]:
    if not len(values):
        return None, "no example has a correlation"
    means = replicates([lambda weights: float(weights @ values) / len(values)], len(values))[0]
    return percentile_interval(means, len(values))


def _mean(values: Sequence[float | None] | NDArray[np.float64]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _with_maps(item: ExampleMaps, inputs: NDArray, pair: tuple[NDArray, NDArray], grid: Grid) -> ExampleMaps:
    one, other = (values.reshape(grid.map_shape).tolist() for values in pair)
    picture = encoded(_picture(inputs, item.index, pair, grid))
    return dataclasses.replace(item, float_map=one, int8_map=other, picture=picture)


def _picture(inputs: NDArray, index: int, pair: tuple[NDArray, NDArray], grid: Grid) -> NDArray[np.uint8]:
    """Return RGB pixels of an example and both maps, with white gaps."""
    example = inputs[index]
    if grid.kind != "image":
        rows = [nearest(grid.on_input(values)[None], _STRIP, _SIDE * 2) for values in pair]
        strips = signed(rows)
        gap = np.full((GAP, strips[0].shape[1], 3), WHITE, np.uint8)
        among = inputs if grid.kind == "features" else None
        return np.concatenate([strips[0], gap, strips[1], gap, curve(example, _CURVE, 2 * _SIDE, among)], axis=0)
    size = fitted(example.shape, _SIDE)
    shown = [] if why_no_picture(example.shape) else [rgb(brightness(example), *size)]
    return side_by_side([*shown, *signed([nearest(grid.on_input(values), *size) for values in pair])])


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
