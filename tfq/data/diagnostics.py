# SPDX-License-Identifier: Apache-2.0
"""Diagnose a data set for what spoils calibration and evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import AnySplit, Split, without_one_hot

_FEWEST_EXAMPLES = 8
# Of an image, whose pixels follow each other closely; of other values, which may hang together loosely.
_FEWEST_PIXELS, _FEWEST_VALUES = 1000, 4000
_FEWEST_POSITIONS = 16
# Values that are looked at: the temporaries stay in the tens of megabytes.
_MOST_VALUES = 2_000_000
# Noise strays from what is expected by so many standard deviations once in millions.
_SIGMAS = 5.0


@dataclass(frozen=True, kw_only=True)
class NoiseVerdict:
    """is_noise: None where nothing can be said. reason: a clause, with the number that decided."""

    is_noise: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Statistic:
    """A number, what it is of independent draws of one distribution, and how far it may stray; and what it tells."""

    value: float
    of_noise: float
    tolerance: float
    told: str

    @property
    def is_of_noise(self) -> bool:
        return abs(self.value - self.of_noise) <= self.tolerance


def examples_looked_at(positions: int) -> int:
    """How many examples of so many values are enough to judge by."""
    return max(_FEWEST_EXAMPLES, _MOST_VALUES // max(1, positions))


def judge_noise(values: NDArray) -> NoiseVerdict:
    """Whether `values` (n, ...) are independent draws of one distribution, all positions and examples alike.

    Looked at in turn, and the first that is not as in noise decides: neighbours along every axis, means and spreads of
    positions and of examples, products of pairs of examples; of what is no image also whether the values are spread
    evenly or by the bell curve. Real data fails at least one: pixels follow their neighbours, features differ in scale
    or move together, recordings differ in loudness. Scale and offset do not matter, of an image not even by channel.
    """
    if values.dtype.kind in "iub" and values.ndim <= 2:
        return NoiseVerdict(is_noise=None, reason="integers are taken as indices, and not looked at")
    positions = int(np.prod(values.shape[1:]))
    values = values[: examples_looked_at(positions)]
    is_image = values.ndim == 4 and min(values.shape[1:3]) >= 8
    fewest = _FEWEST_PIXELS if is_image else _FEWEST_VALUES
    if len(values) < _FEWEST_EXAMPLES or values.size < fewest or positions < _FEWEST_POSITIONS:
        return NoiseVerdict(is_noise=None, reason=f"{len(values)} examples of {positions} values are too few to tell")
    axes = (0, 1, 2) if is_image and values.shape[3] <= 4 else None
    values = values.astype(np.float64)
    spread = values.std(axis=axes, keepdims=True)
    if (spread == 0).any():
        return NoiseVerdict(is_noise=False, reason="the values are constant")
    levels = 0 if is_image else len(np.unique(values[:100]))
    values = (values - values.mean(axis=axes, keepdims=True)) / spread
    neighbours = 0.0
    for statistic in _statistics(values):
        if not statistic.is_of_noise:
            return NoiseVerdict(is_noise=False, reason=statistic.told)
        if "neighbours" in statistic.told:
            neighbours = max(neighbours, abs(statistic.value))
    if not is_image and not _is_drawn(values, levels):
        return NoiseVerdict(is_noise=False, reason="the values follow neither an even nor a normal distribution")
    return NoiseVerdict(
        is_noise=True,
        reason=f"neighbours correlate by {neighbours:.2f} at most, and all positions and examples are alike",
    )


def _statistics(values: NDArray[np.float64]) -> Iterator[_Statistic]:
    """Of standardised values (n, ...). Each expectation and deviation is that of independent draws."""
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
            of_noise=0.0,
            tolerance=0.01 + _SIGMAS / np.sqrt(before.size),
            told=f"neighbours{along} correlate by {correlation:.2f}, those of noise by 0.00",
        )
    flat = values.reshape(n, -1)
    positions = flat.shape[1]
    squares = flat**2
    spread_of_squares = max(float(np.mean(squares**2)) - 1, 0.0)
    for axis, averaged, many, what in ((0, n, positions, "positions"), (1, positions, n, "examples")):
        ratio = float(flat.mean(axis=axis).var()) * averaged
        yield _Statistic(
            value=ratio,
            of_noise=1.0,
            tolerance=0.1 + _SIGMAS * np.sqrt(2 / many),
            told=f"the means of {what} vary {ratio:.3g} times as much as those of noise",
        )
        if spread_of_squares > 0.05:  # else all values are as far from the mean, and their squares tell nothing
            ratio = float(squares.mean(axis=axis).var()) * averaged / spread_of_squares
            yield _Statistic(
                value=ratio,
                of_noise=1.0,
                tolerance=0.2 + 1.5 * _SIGMAS * np.sqrt(2 / many),
                told=f"the spreads of {what} vary {ratio:.3g} times as much as those of noise",
            )
    products = (flat @ flat.T)[np.triu_indices(n, 1)] ** 2 / positions
    ratio = float(products.mean())
    yield _Statistic(
        value=ratio,
        of_noise=1.0,
        tolerance=0.1 + _SIGMAS * np.sqrt(2 / len(products)),
        told=f"examples are {ratio:.3g} times as alike as those of noise",
    )


def _is_drawn(values: NDArray[np.float64], levels: int) -> bool:
    """Whether skewness and kurtosis of standardised values are those of an even or of a normal distribution.

    levels: how many different values there are: an even distribution over m whole numbers has the kurtosis
    3 (3 m^2 - 7) / (5 (m^2 - 1)), and 1.8 in the limit.
    """
    skewness, kurtosis = float(np.mean(values**3)), float(np.mean(values**4))
    even = 3 * (3 * levels**2 - 7) / (5 * (levels**2 - 1))
    stray = 0.05 + _SIGMAS * np.sqrt(6 / values.size)
    return abs(skewness) <= stray and min(abs(kurtosis - even), abs(kurtosis - 3)) <= 2 * stray


_FEW_EXAMPLES = 50
_MOST_CLASSES = 10_000
_MUCH_OF_A_CLASS = 5.0
_MANY_ODD = 0.05
# Examples that are looked at as a whole; the labels of all are counted.
_LOOKED_AT_BYTES = 1 << 27
_MIDDLE = (0.0005, 0.9995)
_MIDDLE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class DataDiagnostics:
    """What was found in `num_examples` examples.

    class_counts: {class: examples}, of every class that is known; None where there are none, and class_counts_reason
        says why. noise: {"is_noise": True, False or None where nothing could be said, input: why}.
    findings: a sentence each, with its numbers and what to do; empty where nothing stands out.
    """

    num_examples: int
    class_counts: dict[str, int] | None
    class_counts_reason: str | None
    noise: dict[str, Any]
    findings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "num_examples": self.num_examples,
            "class_counts": self.class_counts,
            "class_counts_reason": self.class_counts_reason,
            "noise": self.noise,
            "findings": list(self.findings),
        }


def diagnose(split: AnySplit, whole: Callable[[], AnySplit] | None = None) -> DataDiagnostics:
    """What stands out in `split`, the examples that are to calibrate a model, as the model is fed them.

    whole: gives all that the examples were taken from, whose labels say which classes there are. It is called only
        where the classes look wrong without it.
    """
    labels, examples = _labels_and_examples(split)
    counts, reason = _class_counts(labels, split.class_names)
    verdicts = {name: judge_noise(array) for name, array in examples.items()}
    findings = [] if counts is None else list(_class_findings(counts, _is_sorted(labels), split, whole))
    if split.num_examples < _FEW_EXAMPLES:
        findings.append(
            f"{split.num_examples} calibration examples are few: ranges from them miss values that come up later, "
            "which are then clipped: give 100 or more (conversion.num_calibration_samples, or more data)"
        )
    for name, array in examples.items():
        findings += _input_findings(name, array, verdicts[name])
    return DataDiagnostics(
        num_examples=split.num_examples,
        class_counts=None if counts is None else {_told(label, split.class_names): n for label, n in counts.items()},
        class_counts_reason=reason,
        noise={"is_noise": _any_noise(verdicts), **{name: verdict.reason for name, verdict in verdicts.items()}},
        findings=tuple(findings),
    )


def _any_noise(verdicts: Mapping[str, NoiseVerdict]) -> bool | None:
    known = [verdict.is_noise for verdict in verdicts.values() if verdict.is_noise is not None]
    return any(known) if known else None


def _labels_and_examples(split: AnySplit) -> tuple[NDArray | None, dict[str, NDArray]]:
    """The labels of all examples, and the inputs of the first of them."""
    labels: list[NDArray] = []
    kept: list[Split] = []
    room = _LOOKED_AT_BYTES
    for piece in split.pieces():
        if piece.labels is not None:
            labels.append(piece.labels)
        example_bytes = sum(array.nbytes for array in piece.inputs.values()) / piece.num_examples
        fits = min(piece.num_examples, int(room // max(1, example_bytes)))
        if fits or not kept:
            kept.append(piece.take(max(1, fits)))
            room -= int(fits * example_bytes)
    examples = {name: np.concatenate([piece.inputs[name] for piece in kept]) for name in kept[0].inputs}
    return without_one_hot(np.concatenate(labels)) if labels else None, examples


def _class_counts(labels: NDArray | None, class_names: tuple[str, ...]) -> tuple[dict[int, int] | None, str | None]:
    """{class: examples}, of the classes below the highest one too that have none; or None, and why."""
    if labels is None:
        return None, "the data has no labels"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None, f"the labels are {labels.dtype} {list(labels.shape)}, no class numbers"
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        return None, f"the labels run from {labels.min()} to {labels.max()}, as no class numbers do"
    counts = np.bincount(labels, minlength=len(class_names))
    return {label: int(n) for label, n in enumerate(counts)}, None


def _is_sorted(labels: NDArray | None) -> bool:
    """Whether the labels never fall: the first examples of data sorted by class are, and others nearly never."""
    return labels is not None and len(labels) > 1 and not (np.diff(labels) < 0).any()


def _class_findings(
    counts: Mapping[int, int], is_sorted: bool, split: AnySplit, whole: Callable[[], AnySplit] | None
) -> Iterator[str]:
    total = split.num_examples
    shares = {label: 1 / len(counts) for label in counts}
    result = _missing_and_many(counts, shares, total)
    # Of sorted data the first classes may be balanced, and the others be beyond the highest that is here.
    if len(counts) > 1 and not any(result) and not is_sorted:
        return
    if whole is not None:  # the classes of all the data, and how often they are there, are what to be held against
        every, _ = _class_counts(_labels(whole()), split.class_names)
        if every:
            number = sum(every.values())
            shares = {label: n / number for label, n in every.items() if n}
            result = _missing_and_many(counts, shares, total)
    elif len(counts) == 1 and not split.class_names:
        # Class 0 alone is what an autoencoder learns from, and what sorted data begins with.
        yield (
            f"all {total} calibration examples have label 0: where there are other classes, their ranges are missing: "
            "shuffle the data before it is saved"
        )
    missing, many = result
    if missing:
        named = ", ".join(_told(label, split.class_names) for label in missing[:5]) + (", ..." if missing[5:] else "")
        by_chance = min(total * shares[label] for label in missing) < 5
        yield (
            f"{len(missing)} of {len(shares)} classes ({named}) have no example among the {total} that calibrate: "
            + ("give more of them (conversion.num_calibration_samples)" if by_chance else "shuffle the data")
            + ", or values that only these classes cause are clipped"
        )
    for label in many:
        yield (
            f"class {_told(label, split.class_names)} has {counts[label]} of the {total} examples that calibrate, "
            f"{counts[label] / total / shares[label]:.1f} times its share: the ranges lean to it: shuffle or balance "
            "the data"
        )


def _missing_and_many(
    counts: Mapping[int, int], shares: Mapping[int, float], total: int
) -> tuple[list[int], list[int]]:
    """Classes without an example, and those with more than five times their share, beyond what chance gives."""
    missing = [label for label in shares if not counts.get(label)]
    many = [
        label
        for label, fraction in shares.items()
        if counts.get(label, 0)
        > max(_MUCH_OF_A_CLASS * fraction * total, fraction * total + 5 * np.sqrt(fraction * total))
    ]
    return missing, many


def _labels(split: AnySplit) -> NDArray | None:
    labels = [piece.labels for piece in split.pieces() if piece.labels is not None]
    return without_one_hot(np.concatenate(labels)) if labels else None


def _told(label: int, class_names: tuple[str, ...]) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _input_findings(name: str, array: NDArray, verdict: NoiseVerdict) -> Iterator[str]:
    where = f"input {name!r}"
    n = len(array)
    flat = array.reshape(n, -1)
    if verdict.is_noise:
        yield (
            f"{where} looks like random noise ({verdict.reason}): ranges from noise say nothing of real data: "
            "calibrate with real examples"
        )
    copies = n - len(Counter(row.tobytes() for row in flat))
    if copies > _MANY_ODD * n:
        yield (
            f"{copies} of {n} calibration examples are copies of others in {where}: they add nothing to the ranges: "
            "give different ones"
        )
    constant = int((flat.min(axis=1) == flat.max(axis=1)).sum()) if flat.shape[1] > 1 else 0
    if constant > _MANY_ODD * n:
        yield (
            f"{constant} of {n} calibration examples hold one value everywhere in {where}: are they empty, or read "
            "wrongly?"
        )
    yield from _scale_findings(where, array, flat)
    yield from _outlier_findings(where, flat)


def _scale_findings(where: str, array: NDArray, flat: NDArray) -> Iterator[str]:
    """Images of pixels 0..255 beside images that were scaled to 0..1 already."""
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.dtype.kind != "f":
        return
    highest, lowest = flat.max(axis=1), flat.min(axis=1)
    small = (highest <= 1) & (highest > lowest) & (lowest >= -1)
    # A black picture of pixels holds whole numbers; one that was scaled does not.
    small &= (flat != np.rint(flat)).any(axis=1)
    large = highest > 100
    if small.any() and large.any():
        yield (
            f"{int(small.sum())} of {len(flat)} examples of {where} lie between {lowest[small].min():.3g} and "
            f"{highest[small].max():.3g}, others reach {highest.max():.4g}: they were scaled differently: scale all "
            "alike"
        )


def _outlier_findings(where: str, flat: NDArray) -> Iterator[str]:
    """A few values so far out that int8 codes are spent on the emptiness between; zeros do not count."""
    if flat.dtype.kind != "f":
        return
    values = flat[flat != 0]
    if values.size < 2000:
        return
    low, high = np.quantile(values, _MIDDLE)
    low, high = min(low, 0.0), max(high, 0.0)  # a range holds zero
    whole = max(float(values.max()), 0.0) - min(float(values.min()), 0.0)
    if high - low < _MIDDLE_SHARE * whole:
        yield (
            f"99.9% of the values of {where} lie between {low:.4g} and {high:.4g}, yet a few reach from "
            f"{values.min():.4g} to {values.max():.4g}: int8 leaves {256 * (high - low) / whole:.1f} of its 256 codes "
            "for nearly all of the data: remove or clip the outliers"
        )
