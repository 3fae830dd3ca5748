# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation for each example, packed for records, and differences of two models paired by example.

Two models that ran on the same examples differ on few of them, so an interval of their paired difference is much
narrower than the difference of two intervals. A record keeps what such an interval needs: for 10,000 examples of a
classifier about 40 kB.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.paired import MIN_PAIRS, PairedDifference, mean_difference, num_draws, student_t

_BITS = "bits"
_DTYPES = ("uint8", "uint16", "uint32", "float16", "float32")
_MOST_EXAMPLES = 1 << 26
# The size of the packed results of a record that `ExampleResults.to_dict` keeps to.
MAX_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputResults:
    """The results of one output, an entry for each of n examples. None if there are none.

    Attributes:
        predicted: (n,) the predicted class, of an output that predicts one class.
        agrees: (n,) whether it is the class that the reference predicts.
        noise_db: (n,) 10 log10 of the sum of the squared differences from the reference, as float16; -inf without any.
    """

    predicted: NDArray[np.integer] | None = None
    agrees: NDArray[np.bool_] | None = None
    noise_db: NDArray[np.float16] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: None if values is None else packed(values) for name, values in vars(self).items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputNoise:
    """The noise of one output against a reference. Only noise of the same output and reference can be paired.

    Attributes:
        output: The name of the output.
        reference: The hash of the reference; None if unknown.
        noise_db: `OutputResults.noise_db`.
    """

    output: str
    reference: str | None
    noise_db: NDArray[np.float16]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.noise_db)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleResults:
    """The results of an evaluation for each of n examples.

    Attributes:
        num_examples: n.
        scores: For each metric that is a mean over the examples, (n,) whether each example is right, or its score.
        replicates: For each other metric, its values for the draws of a bootstrap (`tfq.evaluation.paired`), float32.
            All evaluations of n examples use the same draws, so that the differences of their replicates are paired.
        unpaired: Why a metric has neither, so that no difference of it can have a paired interval.
        outputs: The results of each output, by name.
        left_out: Why arrays of outputs are missing in a record: all together were larger than `MAX_BYTES`.
    """

    num_examples: int
    scores: Mapping[str, NDArray] = field(default_factory=dict)
    replicates: Mapping[str, NDArray] = field(default_factory=dict)
    unpaired: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputResults] = field(default_factory=dict)
    left_out: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: each array is compressed (zlib) and in base64, at most `MAX_BYTES` in all.

        If they would be larger, the arrays of outputs are left out, the largest first, and `left_out` says so. A later
        comparison then has the agreement and the SQNR of these outputs without paired intervals. Those of metrics stay:
        their scores take a bit or four bytes for each example, their replicates about 6 kB.
        """
        scores = {name: packed(values) for name, values in self.scores.items()}
        draws = {name: packed(values.astype(np.float32)) for name, values in self.replicates.items()}
        outputs = {name: results.to_dict() for name, results in self.outputs.items()}
        left_out, sizes = self.left_out, _sizes(outputs)
        budget = MAX_BYTES - sum(len(item["zlib"]) for item in (*scores.values(), *draws.values()))
        while sizes and sum(sizes.values()) > budget:
            name, key = max(sizes, key=lambda place: sizes[place])
            outputs[name][key] = None
            del sizes[name, key]
            left_out = f"the results of all {self.num_examples:,} examples are larger than {MAX_BYTES:,} bytes"
        return {
            "num_examples": self.num_examples,
            "scores": scores,
            "replicates": draws,
            "unpaired": dict(self.unpaired),
            "outputs": outputs,
            "left_out": left_out,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExampleResults":
        """Return the results in the JSON values of a record, which may come from anywhere.

        Raises:
            InputError: They are damaged.
        """
        count = values.get("num_examples")
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= _MOST_EXAMPLES:
            raise _damaged("num_examples", "a positive number of examples", count)
        names = ("outputs", "scores", "replicates", "unpaired")
        outputs, scores, draws, unpaired = (_mapping(values, name) for name in names)
        return cls(
            num_examples=count,
            scores=_arrays(scores, count, "scores"),
            replicates=_arrays(draws, num_draws(count), "replicates"),
            unpaired={name: str(reason) for name, reason in unpaired.items()},
            outputs={
                name: OutputResults(
                    **{
                        key: unpacked(item.get(key), count, f"outputs.{name}.{key}")
                        for key in ("predicted", "agrees", "noise_db")
                    }
                )
                for name, item in outputs.items()
                if isinstance(item, Mapping)
            },
        )


def _sizes(outputs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Return the size of each array of the outputs in bytes, by (output, name)."""
    return {
        (name, key): len(value["zlib"])
        for name, arrays in outputs.items()
        for key, value in arrays.items()
        if value is not None
    }


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    result = values.get(name) or {}
    if not isinstance(result, Mapping):
        raise _damaged(name, "an object", type(result).__name__)
    return result


def _arrays(values: Mapping[str, Any], count: int, where: str) -> dict[str, NDArray]:
    arrays = {name: unpacked(value, count, f"{where}.{name}") for name, value in values.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def noise_db(reference: NDArray, output: NDArray) -> NDArray[np.float16] | None:
    """Return for each example 10 log10 of the sum of the squared differences; None if a value is not finite."""
    error = output.reshape(len(output), -1).astype(np.float64) - reference.reshape(len(reference), -1)
    if not np.isfinite(error).all():
        return None
    with np.errstate(divide="ignore"):
        return (10 * np.log10(np.square(error).sum(axis=1))).astype(np.float16)


def smallest_classes(classes: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return class numbers in the smallest unsigned type that holds them."""
    largest = int(classes.max(initial=0))
    return classes.astype(np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.uint32)


def packed(values: NDArray) -> dict[str, Any]:
    """Return an array (n,) as JSON values; booleans take a bit each."""
    if values.dtype.kind == "b":
        kind, content = _BITS, np.packbits(values).tobytes()
    else:
        kind, content = str(values.dtype), values.astype(values.dtype.newbyteorder("<")).tobytes()
    return {"dtype": kind, "zlib": base64.b64encode(zlib.compress(content, 9)).decode()}


def unpacked(value: Any, count: int, where: str) -> NDArray | None:
    """Return the array (`count`,) that `packed` returned as JSON values; None for None.

    Raises:
        InputError: It is damaged, or has another length.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.get("dtype") not in (_BITS, *_DTYPES):
        raise _damaged(where, f"an array of {', '.join((_BITS, *_DTYPES))}", value)
    kind = value["dtype"]
    size = math.ceil(count / 8) if kind == _BITS else count * np.dtype(kind).itemsize
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(value["zlib"], validate=True), size + 1)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise _damaged(where, "zlib data in base64", str(error)) from error
    if len(content) != size:
        raise _damaged(where, f"{count:,} examples", f"{len(content):,} bytes")
    if kind == _BITS:
        return np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(bool)
    return np.frombuffer(content, np.dtype(kind).newbyteorder("<")).astype(kind)


def _damaged(where: str, expected: str, got: object) -> InputError:
    return InputError(
        f"evaluation.per_example.{where} of the record is damaged: expected {expected}. Write the record again with "
        "tfq evaluate",
        field=f"evaluation.per_example.{where}",
        expected=expected,
        got=got if isinstance(got, (int, str)) else type(got).__name__,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The change of a figure, with its 95% interval.

    Attributes:
        value: The new value minus the old one.
        low: The lower end of the interval; None without one.
        high: The upper end.
        paired: Whether the interval pairs the results of the same examples.
        wins: Examples that only the new model gets right; None if examples are not right or wrong.
        losses: Examples that only the old model gets right.
    """

    value: float
    low: float | None = None
    high: float | None = None
    paired: bool = False
    wins: int | None = None
    losses: int | None = None

    @property
    def is_noise(self) -> bool:
        """Whether there is an interval and it contains 0."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def difference_of_scores(scores: NDArray, base_scores: NDArray) -> Difference:
    """Return the difference of the means of (n,) scores on the same examples.

    For booleans it is the score interval of `paired_difference`, else a Student t interval of the paired differences.
    """
    pair = mean_difference(scores, base_scores)
    if pair is None:
        return Difference(value=float(scores.mean(dtype=np.float64) - base_scores.mean(dtype=np.float64)), paired=True)
    return difference_of_pair(pair)


def difference_of_pair(pair: PairedDifference) -> Difference:
    """Return a paired difference as the change of a figure."""
    return Difference(
        value=pair.difference, low=pair.low, high=pair.high, paired=True, wins=pair.wins, losses=pair.losses
    )


def difference_of_noise(new: OutputNoise, base: OutputNoise) -> Difference | None:
    """Return the change of an SQNR; None if the outputs, the references or the numbers of examples differ."""
    if (new.output, new.reference, len(new)) != (base.output, base.reference, len(base)):
        return None
    return difference_of_sqnr(new.noise_db, base.noise_db)


def difference_of_sqnr(noise: NDArray, base_noise: NDArray) -> Difference:
    """Return the change of an SQNR against the same reference, in dB, of (n,) noises of the same examples in dB.

    The signal is the same, so it is -10 log10 of a ratio of two means. The interval is that of the logarithm of the
    ratio, linearized (delta method).
    """
    new, base = (np.power(10.0, values.astype(np.float64) / 10) for values in (noise, base_noise))
    if not new.any() and not base.any():
        return Difference(value=0.0, low=0.0, high=0.0, paired=True)
    if not new.any() or not base.any():
        return Difference(value=math.inf if base.any() else -math.inf, paired=True)
    value = -10 * math.log10(new.mean() / base.mean())
    half_width = _half_width(10 / math.log(10) * (new / new.mean() - base / base.mean()))
    if half_width is None:
        return Difference(value=value, paired=True)
    return Difference(value=value, low=value - half_width, high=value + half_width, paired=True)


def difference_of_intervals(
    value: float, base_value: float, interval: Sequence[float], base_interval: Sequence[float]
) -> Difference:
    """Return the difference of two values with separate intervals, as if they were independent.

    The halves of the intervals add in quadrature (Newcombe 1998, method 10). It is wider than a paired interval.
    """
    change = value - base_value
    low = math.hypot(value - interval[0], base_interval[1] - base_value)
    high = math.hypot(interval[1] - value, base_value - base_interval[0])
    return Difference(value=change, low=change - low, high=change + high)


def _half_width(values: NDArray[np.float64]) -> float | None:
    """Return half the width of a 95% Student t interval of a mean; None for too few values."""
    if len(values) < MIN_PAIRS:
        return None
    return student_t(0.975, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
