# SPDX-License-Identifier: Apache-2.0
"""Diagnose a data set: problems that spoil calibration and evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import AnySplit, Split, without_one_hot

_MIN_EXAMPLES = 8
# Neighboring pixels of an image correlate strongly, so fewer values are enough; other data may correlate weakly.
_MIN_PIXELS, _MIN_VALUES = 1000, 4000
_MIN_POSITIONS = 16
# The most values to examine, so that temporary arrays stay in the tens of megabytes.
_MAX_VALUES = 2_000_000
# Noise deviates from its expectation by this many standard deviations about once in millions of trials.
_SIGMAS = 5.0


@dataclass(frozen=True, kw_only=True)
class NoiseVerdict:
    """The result of `judge_noise`.

    Args:
        is_noise: True or False; None if the data does not decide it.
        reason: A clause with the number that decided.
    """

    is_noise: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Statistic:
    """A statistic of the data, its expected value for independent draws of one distribution, and the tolerance.

    `description` is a clause for the user.
    """

    value: float
    expected_of_noise: float
    tolerance: float
    description: str

    @property
    def fits_noise(self) -> bool:
        return abs(self.value - self.expected_of_noise) <= self.tolerance


def noise_sample_size(positions: int) -> int:
    """Return how many examples with this many values each are enough for a verdict."""
    return max(_MIN_EXAMPLES, _MAX_VALUES // max(1, positions))


def judge_noise(values: NDArray) -> NoiseVerdict:
    """Check whether `values` (n, ...) are independent draws of one distribution.

    These statistics are tested in order, and the first that differs from noise decides: the correlation of neighbors
    along every axis, the means and spreads of positions and of examples, and the products of pairs of examples. If the
    values are not images, their distribution must also be uniform or normal.

    Real data fails at least one test: neighboring pixels correlate, features differ in scale or vary together, and
    recordings differ in loudness. The verdict does not depend on scale and offset; for images with up to 4 channels,
    not even on a scale and offset per channel.
    """
    if values.dtype.kind in "iub" and values.ndim <= 2:
        return NoiseVerdict(is_noise=None, reason="integers are treated as indices and not examined")
    positions = int(np.prod(values.shape[1:]))
    values = values[: noise_sample_size(positions)]
    is_image = values.ndim == 4 and min(values.shape[1:3]) >= 8
    min_values = _MIN_PIXELS if is_image else _MIN_VALUES
    if len(values) < _MIN_EXAMPLES or values.size < min_values or positions < _MIN_POSITIONS:
        return NoiseVerdict(
            is_noise=None, reason=f"{len(values)} examples of {positions} values are too few for a verdict"
        )
    axes = (0, 1, 2) if is_image and values.shape[3] <= 4 else None
    values = values.astype(np.float64)
    spread = values.std(axis=axes, keepdims=True)
    if (spread == 0).any():
        return NoiseVerdict(is_noise=False, reason="the values are constant")
    levels = 0 if is_image else len(np.unique(values[:100]))
    values = (values - values.mean(axis=axes, keepdims=True)) / spread
    neighbors = 0.0
    for statistic in _statistics(values):
        if not statistic.fits_noise:
            return NoiseVerdict(is_noise=False, reason=statistic.description)
        if "neighbors" in statistic.description:
            neighbors = max(neighbors, abs(statistic.value))
    if not is_image and not _is_drawn(values, levels):
        return NoiseVerdict(is_noise=False, reason="the values follow neither a uniform nor a normal distribution")
    return NoiseVerdict(
        is_noise=True,
        reason=f"neighbors correlate by at most {neighbors:.2f}, and all positions and examples are alike",
    )


def _statistics(values: NDArray[np.float64]) -> Iterator[_Statistic]:
    """Yield the statistics of standardized values (n, ...), with the expectation and deviation of independent draws."""
    n, shape = len(values), values.shape[1:]
    for axis in range(1, values.ndim):
        if values.shape[axis] < 2:
            continue
        before = np.take(values, range(values.shape[axis] - 1), axis=axis)
        after = np.take(values, range(1, values.shape[axis]), axis=axis)
        correlation = float(np.mean(before * after))
        along = f" along axis {axis}" if len(shape) > 1 else ""
        yield _Statistic(
            value=correlation,
            expected_of_noise=0.0,
            tolerance=0.01 + _SIGMAS / np.sqrt(before.size),
            description=f"neighbors{along} correlate by {correlation:.2f}; those of noise correlate by 0.00",
        )
    flat = values.reshape(n, -1)
    positions = flat.shape[1]
    squares = flat**2
    spread_of_squares = max(float(np.mean(squares**2)) - 1, 0.0)
    for axis, averaged, count, axis_name in ((0, n, positions, "positions"), (1, positions, n, "examples")):
        ratio = float(flat.mean(axis=axis).var()) * averaged
        yield _Statistic(
            value=ratio,
            expected_of_noise=1.0,
            tolerance=0.1 + _SIGMAS * np.sqrt(2 / count),
            description=f"the means of {axis_name} vary {ratio:.3g} times as much as in noise",
        )
        if spread_of_squares > 0.05:  # Otherwise all values are equally far from the mean, and squares are constant.
            ratio = float(squares.mean(axis=axis).var()) * averaged / spread_of_squares
            yield _Statistic(
                value=ratio,
                expected_of_noise=1.0,
                tolerance=0.2 + 1.5 * _SIGMAS * np.sqrt(2 / count),
                description=f"the spreads of {axis_name} vary {ratio:.3g} times as much as in noise",
            )
    products = (flat @ flat.T)[np.triu_indices(n, 1)] ** 2 / positions
    ratio = float(products.mean())
    yield _Statistic(
        value=ratio,
        expected_of_noise=1.0,
        tolerance=0.1 + _SIGMAS * np.sqrt(2 / len(products)),
        description=f"the similarity of examples is {ratio:.3g} times that of noise",
    )


def _is_drawn(values: NDArray[np.float64], levels: int) -> bool:
    """Check whether the skewness and kurtosis of standardized values fit a uniform or a normal distribution.

    Args:
        values: Standardized values.
        levels: The number of distinct values. A uniform distribution over m integers has the kurtosis
            3 (3 m^2 - 7) / (5 (m^2 - 1)), which approaches 1.8.
    """
    skewness, kurtosis = float(np.mean(values**3)), float(np.mean(values**4))
    uniform = 3 * (3 * levels**2 - 7) / (5 * (levels**2 - 1))
    tolerance = 0.05 + _SIGMAS * np.sqrt(6 / values.size)
    return abs(skewness) <= tolerance and min(abs(kurtosis - uniform), abs(kurtosis - 3)) <= 2 * tolerance


_FEW_EXAMPLES = 50
_MAX_CLASSES = 10_000
_OVERREPRESENTED = 5.0
_ODD_FRACTION = 0.05
# Only the inputs of the first examples are examined, up to this size; the labels of all examples are counted.
_EXAMINED_BYTES = 1 << 27
_MIDDLE = (0.0005, 0.9995)
_MIDDLE_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class DataDiagnostics:
    """The findings about `num_examples` examples.

    Args:
        num_examples: How many examples were examined.
        class_counts: {class: number of examples} for every known class; None if there are no class labels.
        class_counts_reason: Why `class_counts` is None, else None.
        noise: {"is_noise": True, False or None if the data does not decide it, input name: reason}.
        findings: One sentence for each problem, with its numbers and what to do; empty if there is none.
    """

    num_examples: int
    class_counts: dict[str, int] | None
    class_counts_reason: str | None
    noise: dict[str, Any]
    findings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "num_examples": self.num_examples,
            "class_counts": self.class_counts,
            "class_counts_reason": self.class_counts_reason,
            "noise": self.noise,
            "findings": list(self.findings),
        }


def diagnose(split: AnySplit, full: Callable[[], AnySplit] | None = None) -> DataDiagnostics:
    """Return what is unusual in `split`: the preprocessed examples that calibrate a model.

    Args:
        split: The calibration examples.
        full: Returns all examples that `split` was taken from; their labels show which classes exist. It is only
            called if the classes of `split` look wrong.
    """
    labels, examples = _labels_and_examples(split)
    counts, reason = _class_counts(labels, split.class_names)
    verdicts = {name: judge_noise(array) for name, array in examples.items()}
    findings = [] if counts is None else list(_class_findings(counts, _is_sorted(labels), split, full))
    if split.num_examples < _FEW_EXAMPLES:
        findings.append(
            f"there are only {split.num_examples} calibration examples: values outside of their ranges will be "
            "clipped. Use 100 or more (conversion.num_calibration_samples, or more data)"
        )
    for name, array in examples.items():
        findings += _input_findings(name, array, verdicts[name])
    return DataDiagnostics(
        num_examples=split.num_examples,
        class_counts=None
        if counts is None
        else {_class_title(label, split.class_names): n for label, n in counts.items()},
        class_counts_reason=reason,
        noise={"is_noise": _any_noise(verdicts), **{name: verdict.reason for name, verdict in verdicts.items()}},
        findings=tuple(findings),
    )


def _any_noise(verdicts: Mapping[str, NoiseVerdict]) -> bool | None:
    known = [verdict.is_noise for verdict in verdicts.values() if verdict.is_noise is not None]
    return any(known) if known else None


def _labels_and_examples(split: AnySplit) -> tuple[NDArray | None, dict[str, NDArray]]:
    """Return the labels of all examples, and the inputs of the first ones."""
    labels: list[NDArray] = []
    parts: list[Split] = []
    budget = _EXAMINED_BYTES
    for piece in split.pieces():
        if piece.labels is not None:
            labels.append(piece.labels)
        example_bytes = sum(array.nbytes for array in piece.inputs.values()) / piece.num_examples
        fits = min(piece.num_examples, int(budget // max(1, example_bytes)))
        if fits or not parts:
            parts.append(piece.take(max(1, fits)))
            budget -= int(fits * example_bytes)
    examples = {name: np.concatenate([piece.inputs[name] for piece in parts]) for name in parts[0].inputs}
    return without_one_hot(np.concatenate(labels)) if labels else None, examples


def _class_counts(labels: NDArray | None, class_names: tuple[str, ...]) -> tuple[dict[int, int] | None, str | None]:
    """Return {class: examples}, with 0 for lower or named classes without an example; or None and the reason."""
    if labels is None:
        return None, "the data has no labels"
    if labels.dtype.names:
        return None, f"there are labels for each of {', '.join(labels.dtype.names)}"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None, f"the labels are {labels.dtype} {list(labels.shape)}, not class numbers"
    if labels.min() < 0 or labels.max() >= _MAX_CLASSES:
        return None, f"the labels range from {labels.min()} to {labels.max()}, so they are not class numbers"
    counts = np.bincount(labels, minlength=len(class_names))
    return {label: int(n) for label, n in enumerate(counts)}, None


def _is_sorted(labels: NDArray | None) -> bool:
    """Check whether the labels never decrease, as in the first examples of data that is sorted by class."""
    return labels is not None and len(labels) > 1 and not (np.diff(labels) < 0).any()


def _class_findings(
    counts: Mapping[int, int], is_sorted: bool, split: AnySplit, full: Callable[[], AnySplit] | None
) -> Iterator[str]:
    total = split.num_examples
    fractions = {label: 1 / len(counts) for label in counts}
    result = _missing_and_overrepresented(counts, fractions, total)
    # In sorted data the first classes may be balanced, while the missing ones have higher numbers than any here.
    if len(counts) > 1 and not any(result) and not is_sorted:
        return
    if full is not None:  # compare with the class frequencies of all the data
        all_counts, _ = _class_counts(_labels(full()), split.class_names)
        if all_counts:
            num_labels = sum(all_counts.values())
            fractions = {label: n / num_labels for label, n in all_counts.items() if n}
            result = _missing_and_overrepresented(counts, fractions, total)
    elif len(counts) == 1 and not split.class_names:
        # Class 0 alone is normal for an autoencoder, and is also how sorted data begins.
        yield (
            f"all {total} calibration examples have label 0: if there are other classes, their value ranges are "
            "missing. Shuffle the data before you save it"
        )
    missing, overrepresented = result
    if missing:
        names_text = ", ".join(_class_title(label, split.class_names) for label in missing[:5]) + (
            ", ..." if missing[5:] else ""
        )
        by_chance = min(total * fractions[label] for label in missing) < 5
        yield (
            f"{len(missing)} of {len(fractions)} classes ({names_text}) have no example among the {total} calibration "
            "examples: values that only these classes produce will be clipped. "
            + ("Use more examples (conversion.num_calibration_samples)" if by_chance else "Shuffle the data")
        )
    for label in overrepresented:
        yield (
            f"class {_class_title(label, split.class_names)} has {counts[label]} of the {total} calibration examples, "
            f"{counts[label] / total / fractions[label]:.1f} times its expected fraction, so the ranges mostly fit "
            "this class. Shuffle or balance the data"
        )


def _missing_and_overrepresented(
    counts: Mapping[int, int], fractions: Mapping[int, float], total: int
) -> tuple[list[int], list[int]]:
    """Return the classes without an example, and those with more than five times their fraction, beyond chance."""
    missing = [label for label in fractions if not counts.get(label)]
    overrepresented = [
        label
        for label, fraction in fractions.items()
        if counts.get(label, 0)
        > max(_OVERREPRESENTED * fraction * total, fraction * total + 5 * np.sqrt(fraction * total))
    ]
    return missing, overrepresented


def _labels(split: AnySplit) -> NDArray | None:
    labels = [piece.labels for piece in split.pieces() if piece.labels is not None]
    return without_one_hot(np.concatenate(labels)) if labels else None


def _class_title(label: int, class_names: tuple[str, ...]) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _input_findings(name: str, array: NDArray, verdict: NoiseVerdict) -> Iterator[str]:
    where = f"input {name!r}"
    n = len(array)
    flat = array.reshape(n, -1)
    if verdict.is_noise:
        yield (
            f"{where} looks like random noise ({verdict.reason}): ranges from noise do not fit real data. Calibrate "
            "with real examples"
        )
    copies = n - len(Counter(row.tobytes() for row in flat))
    if copies > _ODD_FRACTION * n:
        yield (
            f"{copies} of {n} calibration examples have the same values as another one in {where}: they add nothing to "
            "the ranges. Use different examples"
        )
    constant = int((flat.min(axis=1) == flat.max(axis=1)).sum()) if flat.shape[1] > 1 else 0
    if constant > _ODD_FRACTION * n:
        yield (
            f"{constant} of {n} calibration examples have a single constant value in {where}. Check whether these "
            "files are empty or were decoded wrongly"
        )
    yield from _scale_findings(where, array, flat)
    yield from _outlier_findings(where, flat)


def _scale_findings(where: str, array: NDArray, flat: NDArray) -> Iterator[str]:
    """Yield a finding if some images have pixels in 0..255 and others were already scaled to 0..1."""
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.dtype.kind != "f":
        return
    highest, lowest = flat.max(axis=1), flat.min(axis=1)
    small = (highest <= 1) & (highest > lowest) & (lowest >= -1)
    # The pixels of a dark image are integers; those of a scaled image are not.
    small &= (flat != np.rint(flat)).any(axis=1)
    large = highest > 100
    if small.any() and large.any():
        yield (
            f"{int(small.sum())} of {len(flat)} examples of {where} range from {lowest[small].min():.3g} to "
            f"{highest[small].max():.3g}, others reach {highest.max():.4g}: they were scaled differently. Scale all "
            "examples the same way"
        )


def _outlier_findings(where: str, flat: NDArray) -> Iterator[str]:
    """Yield a finding if a few outliers use up most of the int8 range. Zeros do not count."""
    if flat.dtype.kind != "f":
        return
    values = flat[flat != 0]
    if values.size < 2000:
        return
    low, high = np.quantile(values, _MIDDLE)
    low, high = min(low, 0.0), max(high, 0.0)  # a quantization range includes zero
    full = max(float(values.max()), 0.0) - min(float(values.min()), 0.0)
    if high - low < _MIDDLE_FRACTION * full:
        yield (
            f"99.9% of the values of {where} lie between {low:.4g} and {high:.4g}, but a few range from "
            f"{values.min():.4g} to {values.max():.4g}: int8 leaves {256 * (high - low) / full:.1f} of its 256 values "
            "for almost all of the data. Remove or clip the outliers"
        )
