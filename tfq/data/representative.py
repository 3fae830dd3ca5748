# SPDX-License-Identifier: Apache-2.0
"""Representative data sets for calibration: which samples, in which form the converters take them.

An element is a list or tuple of arrays in input order, a mapping from input name to array, or a single array.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tfq import tflite
from tfq.data.diagnostics import examples_looked_at, judge_noise
from tfq.data.provided import bind_inputs, shape_fits
from tfq.data.split import Split, SplitStream
from tfq.errors import InputError

_WANTED = (
    "wanted a function that yields lists of arrays, a tf.data.Dataset, an array, a dict of arrays, or "
    "{signature: [{name: array}]}"
)
_DEFAULT_SIGNATURE = "serving_default"


def elements_of(dataset: Any, names: Sequence[str]) -> Iterator[Any]:
    """The elements of `dataset`, lazily. Raises InputError when it is none of the known forms."""
    if isinstance(dataset, Split):
        return iter([bind_inputs(dataset.inputs, names)])
    if isinstance(dataset, SplitStream):
        return (bind_inputs(piece.inputs, names) for piece in dataset.pieces())
    if isinstance(dataset, Mapping):
        return _of_mapping(dataset, names)
    if hasattr(dataset, "as_numpy_iterator"):
        return (_without_labels(element, len(names)) for element in dataset.as_numpy_iterator())
    if isinstance(dataset, np.ndarray) or (hasattr(dataset, "__array__") and not callable(dataset)):
        return iter([np.asarray(dataset)])
    if callable(dataset):
        dataset = dataset()
        if dataset is None:
            raise InputError(
                "representative_dataset: the function returned None: yield a list of arrays for each sample",
                field="representative_dataset",
                got="None",
            )
        return elements_of(dataset, names)
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
        raise InputError(
            f"representative_dataset is {type(dataset).__name__}: {_WANTED}",
            field="representative_dataset",
            got=type(dataset).__name__,
        )
    return (_without_signature(element) for element in dataset)


def _of_mapping(dataset: Mapping, names: Sequence[str]) -> Iterator[Any]:
    """{name: array} or {signature: iterable of {name: array}}."""
    if not dataset:
        return iter([])
    if all(hasattr(value, "__array__") for value in dataset.values()):
        return iter([bind_inputs({name: np.asarray(value) for name, value in dataset.items()}, names)])
    if _DEFAULT_SIGNATURE in dataset:
        samples = dataset[_DEFAULT_SIGNATURE]
    elif len(dataset) == 1:
        samples = next(iter(dataset.values()))
    else:
        raise InputError(
            f"representative_dataset has the signatures {', '.join(map(repr, dataset))}: "
            f"wanted {_DEFAULT_SIGNATURE!r}, or a single one",
            field="representative_dataset",
            expected=_DEFAULT_SIGNATURE,
            got=tuple(dataset),
        )
    samples = samples() if callable(samples) else samples
    if isinstance(samples, (str, bytes, Mapping)) or not isinstance(samples, Iterable):
        raise InputError(
            f"representative_dataset: a signature holds {type(samples).__name__}: expected [{{name: array}}, ...]",
            field="representative_dataset",
            got=type(samples).__name__,
        )
    return iter(samples)


def _without_signature(element: Any) -> Any:
    """TFLite also lets a generator yield (signature, inputs)."""
    if isinstance(element, tuple) and len(element) == 2 and isinstance(element[0], str):
        return element[1]
    return element


def _without_labels(element: Any, num_inputs: int) -> Any:
    """An element of a tf.data.Dataset without its labels.

    A pair is (x, y) when the model has one input, or when x itself is a dict or tuple of inputs. A pair for a model of
    two inputs is the two inputs.
    """
    if isinstance(element, tuple) and len(element) in (2, 3) and not isinstance(element[0], (dict, tuple)):
        return element[0] if num_inputs == 1 else element
    if isinstance(element, tuple) and element and isinstance(element[0], (dict, tuple)):
        return element[0]
    return element


# Below this, a range is what a handful of samples happened to hold.
_FEW_SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """An input of the model.

    shape: with the batch dimension first; None or -1 where it may be anything.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: DTypeLike = "float32"


class SampleDigest:
    """SHA-256 of samples that come one by one: of their names, dtypes, shapes and bytes, in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, sample: Mapping[str, NDArray]) -> None:
        """Takes the next sample."""
        for name, array in sample.items():
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            self._digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            self._digest.update(array.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Of all samples so far."""
        return self._digest.hexdigest()


def data_of_main_subgraph(model: tflite.Model, dataset: Any) -> Any:
    """Return the samples of the main subgraph out of a dataset {signature: samples}; any other dataset as it is.

    Raises:
        InputError: The dataset has samples of other signatures of the model only.
    """
    keys = tflite.signature_keys(model)
    named = {name for names in keys.values() for name in names}
    if not isinstance(dataset, Mapping) or named.isdisjoint(dataset):
        return dataset
    main = keys[model.main_subgraph.index]
    if set(main).isdisjoint(dataset):
        raise InputError(
            "representative_dataset: only subgraph 0 is run, and there are no samples for it: the model has "
            f"{tflite.listed_signatures(model)}",
            field="representative_dataset",
            expected=main,
            got=tuple(dataset),
        )
    return next(dataset[name] for name in main if name in dataset)


def input_specs(model: bytes) -> list[InputSpec]:
    """What the flatbuffer wants to be fed, in its own order, under its signature's names where it has one."""
    parsed = tflite.read(model)
    return [
        # -1 where the flatbuffer leaves a dimension open.
        InputSpec(name=name, shape=tensor.shape_signature or tensor.shape, dtype=np.dtype(tensor.dtype))
        for name, tensor in zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepresentativeSamples:
    """Checked samples: each {input name: array (1, ...) of the input's dtype}, in the dataset's order."""

    samples: list[dict[str, NDArray]]
    steps: int
    warnings: tuple[str, ...]

    def sha256(self) -> str:
        """Hex SHA-256 of the samples' names, dtypes, shapes and bytes, in their order."""
        digest = SampleDigest()
        for sample in self.samples:
            digest.add(sample)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for a record: how many samples, of how many asked for, their hash, the warnings."""
        return {
            "num_samples": len(self.samples),
            "steps": self.steps,
            "sha256": self.sha256(),
            "warnings": list(self.warnings),
        }


def representative_samples(dataset: Any, inputs: Sequence[InputSpec], steps: int) -> RepresentativeSamples:
    """The first `steps` samples of `dataset`, in its own order, each checked and brought to batch 1.

    dataset: a callable or an iterable that yields lists (TFLite's convention), tuples, dicts or arrays; a
        tf.data.Dataset, batched or not, with or without labels; an array (n, ...), a dict of arrays, a Split or
        SplitStream; or {signature: [{name: array}]}. Batches are split into samples. No more elements are drawn than
        are needed.
    Floats of any width become the input's float dtype. An integer array for a float input is taken as real values (a
    pixel of 200 is 200.0), with a warning; integers for an integer input must fit it.
    Raises InputError on an empty dataset, a wrong number or name of inputs, a wrong shape or dtype, NaN or infinity,
    with the sample's index, what was wanted and what came. Too few samples, identical or constant ones, and random
    noise are warnings, which the caller shows and records.
    """
    if steps < 1:
        raise InputError(
            f"num_calibration_samples {steps}: expected at least 1", field="num_calibration_samples", got=steps
        )
    if not inputs:
        raise InputError("representative_dataset: the model has no input to feed", field="model")
    samples: list[dict[str, NDArray]] = []
    casts: dict[str, str] = {}
    for element in elements_of(dataset, [spec.name for spec in inputs]):
        arrays = _bound(element, inputs, len(samples))
        for row in _rows(arrays, inputs, len(samples), steps - len(samples)):
            samples.append(_checked_sample(row, inputs, len(samples), casts))
        if len(samples) == steps:
            break
    if not samples:
        raise InputError(
            "representative_dataset is empty: expected samples of the model's inputs: a generator is used up after "
            "one pass, so give a function that makes a new one each time",
            field="representative_dataset",
            got=0,
        )
    doubts = (*_count_warnings(len(samples), steps), *_constant_warnings(samples), *_noise_warnings(samples))
    warnings = (*casts.values(), *doubts)
    return RepresentativeSamples(samples=samples, steps=steps, warnings=warnings)


def _bound(element: Any, inputs: Sequence[InputSpec], index: int) -> list[NDArray]:
    """An element's arrays in the order of the inputs."""
    where = f"representative_dataset: sample {index}"
    names = [spec.name for spec in inputs]
    if isinstance(element, Mapping):
        try:
            values = bind_inputs(element, names)
        except InputError as error:
            field = f"representative_dataset[{index}]"
            raise InputError(f"{where}: {error}", field=field, expected=error.expected, got=error.got) from error
    elif isinstance(element, (list, tuple)):
        values = list(element)
    else:
        values = [element]
    if len(values) != len(inputs):
        raise InputError(
            f"{where} has {len(values)} arrays: expected {len(inputs)}, one for each input ({', '.join(names)}): "
            "yield a list of one array per input, without labels",
            field=f"representative_dataset[{index}]",
            expected=len(inputs),
            got=len(values),
        )
    return [_array(value, spec.name, index) for value, spec in zip(values, inputs, strict=True)]


def _array(value: Any, name: str, index: int) -> NDArray:
    where = f"representative_dataset: sample {index}, input {name!r}"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{where} cannot be read as an array: {error}", field=_field(index, name), expected="numbers of one shape"
        ) from error
    # ml_dtypes' bfloat16 has kind V; it is a number all the same.
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise InputError(
            f"{where} is {type(value).__name__} of {array.dtype}: expected an array of numbers",
            field=_field(index, name),
            expected="numbers",
            got=str(array.dtype),
        )
    return array


def _rows(arrays: list[NDArray], inputs: Sequence[InputSpec], index: int, most: int) -> Iterator[list[NDArray]]:
    """The samples of an element, at most `most`: the arrays themselves with a batch of 1, or each row of a batch."""
    batches: dict[str, NDArray] = {}
    for array, spec in zip(arrays, inputs, strict=True):
        if not _fits(array.shape, spec.shape[1:]) and not _fits(
            array.shape[1:], spec.shape[1:], batched=array.ndim > 0
        ):
            raise InputError(
                f"representative_dataset: sample {index}, input {spec.name!r} has shape {array.shape}: "
                f"wanted {_told(spec.shape[1:], 'n')}, or {_told(spec.shape[1:])} for a single sample",
                field=_field(index, spec.name),
                expected=spec.shape[1:],
                got=array.shape,
            )
        batches[spec.name] = array if array.ndim == len(spec.shape) else array[None]
    lengths = {name: len(batch) for name, batch in batches.items()}
    if len(set(lengths.values())) > 1:
        message = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"representative_dataset: sample {index}: batches differ in length ({message}): expected one length",
            field=f"representative_dataset[{index}]",
            got=lengths,
        )
    length = next(iter(lengths.values()))
    if not length:
        raise InputError(
            f"representative_dataset: sample {index} is an empty batch: expected at least one row",
            field=f"representative_dataset[{index}]",
            got=0,
        )
    for row in range(min(length, most)):
        yield [batch[row : row + 1] for batch in batches.values()]


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...], batched: bool = True) -> bool:
    return batched and shape_fits(shape, wanted)


def _field(index: int, name: str) -> str:
    return f"representative_dataset[{index}][{name!r}]"


def _told(shape: tuple[int | None, ...], *first: str) -> str:
    sizes = [*first, *("any" if size in (None, -1) else str(size) for size in shape)]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _checked_sample(
    row: list[NDArray], inputs: Sequence[InputSpec], index: int, casts: dict[str, str]
) -> dict[str, NDArray]:
    sample = {}
    for array, spec in zip(row, inputs, strict=True):
        if np.dtype(spec.dtype).kind == "f":
            sample[spec.name] = _as_float(array, spec, index, casts)
        else:
            sample[spec.name] = _as_integer(array, spec, index)
    return sample


def _as_float(array: NDArray, spec: InputSpec, index: int, casts: dict[str, str]) -> NDArray:
    where = f"representative_dataset: sample {index}, input {spec.name!r}"
    if array.dtype.kind in "iub":
        casts.setdefault(
            spec.name,
            f"{where} is {array.dtype}: taken as real values, not as codes (here {array.min()} to {array.max()}): "
            f"cast it to {spec.dtype}, and scale it as the model's training did",
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinity, and is reported as that
        array = array.astype(spec.dtype)
    if not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise InputError(
            f"{where} holds {what}: expected finite numbers: remove or fix this sample",
            field=_field(index, spec.name),
            expected="finite numbers",
            got=what,
        )
    return array


def _as_integer(array: NDArray, spec: InputSpec, index: int) -> NDArray:
    where = f"representative_dataset: sample {index}, input {spec.name!r}"
    wanted = np.dtype(spec.dtype)
    # Whole numbers in floats are what a source makes of small integers, whose meaning it does not know.
    whole = array.dtype.kind == "f" and np.array_equal(array, np.rint(array))
    if not whole and array.dtype.kind not in ("iub" if wanted.kind in "iu" else "b"):
        raise InputError(
            f"{where} is {array.dtype}: expected {spec.dtype}: cast it where the dataset is made",
            field=_field(index, spec.name),
            expected=spec.dtype,
            got=str(array.dtype),
        )
    cast = array.astype(wanted)
    if not np.array_equal(cast, array):
        raise InputError(
            f"{where} holds {array.min()} to {array.max()}: expected values that fit {spec.dtype}",
            field=_field(index, spec.name),
            expected=spec.dtype,
            got=(array.min(), array.max()),
        )
    return cast


def _count_warnings(count: int, steps: int) -> list[str]:
    warnings = []
    if count < steps:
        warnings.append(f"representative_dataset: got {count} of {steps} samples")
    if count < _FEW_SAMPLES:
        warnings.append(
            f"representative_dataset: only {count} samples: ranges from fewer than {_FEW_SAMPLES} are a guess, and "
            "values beyond them will be clipped: give 100 or more"
        )
    return warnings


def _constant_warnings(samples: list[dict[str, NDArray]]) -> list[str]:
    warnings = []
    for name, first in samples[0].items():
        same = all(np.array_equal(first, sample[name]) for sample in samples)
        if same and first.size and (first == first.flat[0]).all() and (first.size > 1 or len(samples) > 1):
            what = f"holds {first.flat[0]!s} everywhere, in all {len(samples)} samples"
        elif same and len(samples) > 1:
            what = f"is the same in all {len(samples)} samples"
        else:
            continue
        warnings.append(f"representative_dataset: input {name!r} {what}: its ranges say nothing about real data")
    return warnings


def _noise_warnings(samples: list[dict[str, NDArray]]) -> list[str]:
    warnings = []
    for name, first in samples[0].items():
        alike = [sample[name] for sample in samples if sample[name].shape == first.shape]
        verdict = judge_noise(np.concatenate(alike[: examples_looked_at(first.size)]))
        if verdict.is_noise:
            warnings.append(
                f"representative_dataset: input {name!r} looks like random noise ({verdict.reason}): ranges from noise "
                "say nothing of real data, and values are clipped: calibrate with real examples"
            )
    return warnings
