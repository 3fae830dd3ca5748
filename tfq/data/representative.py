# SPDX-License-Identifier: Apache-2.0
"""Representative datasets for calibration: the accepted forms, and how samples are checked.

An element of a dataset is a list or tuple of arrays in input order, a mapping from input name to array, or a single
array.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.data.diagnostics import judge_noise, noise_sample_size
from tfq.data.input_order import normalizations, order_warnings
from tfq.data.provided import bind_inputs, shape_fits
from tfq.data.split import Split, SplitStream
from tfq.errors import InputError
from tfq.tflite.input_sizes import check_input_size

_EXPECTED = (
    "expected a function that yields lists of arrays, a tf.data.Dataset, an array, a dict of arrays, or "
    "{signature: [{name: array}]}"
)
_DEFAULT_SIGNATURE = "serving_default"


def elements_of(dataset: Any, names: Sequence[str]) -> Iterator[Any]:
    """Return a lazy iterator over the elements of `dataset`.

    Raises:
        InputError: The dataset has none of the accepted forms.
    """
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
                "representative_dataset: the function returned None. Yield a list of arrays for each sample",
                field="representative_dataset",
                got="None",
            )
        return elements_of(dataset, names)
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
        raise InputError(
            f"representative_dataset: {_EXPECTED}, got {type(dataset).__name__}",
            field="representative_dataset",
            got=type(dataset).__name__,
        )
    return (_without_signature(element) for element in dataset)


def _of_mapping(dataset: Mapping, names: Sequence[str]) -> Iterator[Any]:
    """Return the elements of {name: array} or of {signature: iterable of {name: array}}."""
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
            f"representative_dataset has the signatures {', '.join(map(repr, dataset))}, expected "
            f"{_DEFAULT_SIGNATURE!r} or a single one. Rename the signature to use, or pass only its samples",
            field="representative_dataset",
            expected=_DEFAULT_SIGNATURE,
            got=tuple(dataset),
        )
    samples = samples() if callable(samples) else samples
    if isinstance(samples, (str, bytes, Mapping)) or not isinstance(samples, Iterable):
        raise InputError(
            f"representative_dataset: expected {{signature: [{{name: array}}, ...]}}, got a signature with "
            f"{type(samples).__name__}",
            field="representative_dataset",
            got=type(samples).__name__,
        )
    return iter(samples)


def _without_signature(element: Any) -> Any:
    """Return an element without its signature: TFLite also lets a generator yield (signature, inputs)."""
    if isinstance(element, tuple) and len(element) == 2 and isinstance(element[0], str):
        return element[1]
    return element


def _without_labels(element: Any, num_inputs: int) -> Any:
    """Return an element of a tf.data.Dataset without its labels.

    A pair is (x, y) if the model has one input, or if x is a dict or tuple of inputs. For a model with two inputs, a
    pair of tensors is the two inputs.
    """
    if isinstance(element, tuple) and len(element) in (2, 3) and not isinstance(element[0], (dict, tuple)):
        return element[0] if num_inputs == 1 else element
    if isinstance(element, tuple) and element and isinstance(element[0], (dict, tuple)):
        return element[0]
    return element


# With fewer samples, ranges depend on which samples happened to be chosen.
_FEW_SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """An input of the model.

    Args:
        name: The input's name.
        shape: The shape including the batch dimension; None or -1 stand for any size.
        dtype: The input's dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str | np.dtype[np.generic] | type[np.generic] = "float32"


def common_batch_size(inputs: Sequence[InputSpec]) -> int | None:
    """Return the size of the batch dimension that all inputs share, 1 if it is open; None if they share none.

    Inputs share no batch dimension if one of them has rank 0, or if their first dimensions differ.
    """
    sizes = {(1 if spec.shape[0] in (None, -1) else spec.shape[0]) if spec.shape else None for spec in inputs}
    return sizes.pop() if len(sizes) == 1 else None


def batch_size_of(model: tflite.Model) -> int | None:
    """Return the `common_batch_size` of a flatbuffer's inputs."""
    tensors = model.main_subgraph.input_tensors
    return common_batch_size([InputSpec(name=tensor.name, shape=tensor.shape) for tensor in tensors])


def sample_shape(shape: Sequence[int | None], batch_size: int | None) -> tuple[int | None, ...]:
    """Return the shape of one example of an input.

    Args:
        shape: The shape of the input.
        batch_size: The result of `common_batch_size`. If it is None, an example is the whole input of one inference,
            without a first dimension of 1.
    """
    has_batch = batch_size is not None or (len(shape) > 0 and shape[0] in (1, None, -1))
    return tuple(shape[1:] if has_batch else shape)


class SampleDigest:
    """An incremental SHA-256 of samples: of their names, dtypes, shapes and bytes, in order."""

    def __init__(self) -> None:
        """Start with no samples."""
        self._digest = hashlib.sha256()
        self._headers: dict[tuple[object, ...], bytes] = {}

    def add(self, sample: Mapping[str, NDArray]) -> None:
        """Add the next sample."""
        for name, array in sample.items():
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            kind = (name, array.dtype.str, array.shape)
            if kind not in self._headers:
                self._headers[kind] = json.dumps(kind).encode()
            self._digest.update(self._headers[kind])
            self._digest.update(array.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the hex digest of all samples so far."""
        return self._digest.hexdigest()


def data_of_main_subgraph(model: tflite.Model, dataset: Any) -> Any:
    """Return the samples of the main subgraph from {signature: samples}; any other dataset is returned unchanged.

    Raises:
        InputError: The dataset only has samples for other signatures of the model.
    """
    keys = tflite.signature_keys(model)
    known = {name for names in keys.values() for name in names}
    if not isinstance(dataset, Mapping) or known.isdisjoint(dataset):
        return dataset
    main = keys[model.main_subgraph.index]
    if set(main).isdisjoint(dataset):
        raise InputError(
            "representative_dataset has no samples for subgraph 0, the only one that tfq runs. The model has "
            f"{tflite.listed_signatures(model)}",
            field="representative_dataset",
            expected=main,
            got=tuple(dataset),
        )
    return next(dataset[name] for name in main if name in dataset)


def input_specs(model: bytes) -> list[InputSpec]:
    """Return the inputs of a flatbuffer in its order, named as in its signature if it has one."""
    parsed = tflite.read(model)
    for name, tensor in zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True):
        if tensor.dtype in ("string", "resource", "variant"):
            raise InputError(
                f"input {name!r} is {tensor.dtype}, and tfq cannot feed such inputs. Convert without data to a scheme "
                "without ranges (dynamic_range, float16), or look text up before the model and pass numbers",
                field="model",
                expected="inputs of numbers",
                got=tensor.dtype,
                limit="text-input",
            )
    return [
        # A dimension is -1 if the flatbuffer leaves it open.
        InputSpec(name=name, shape=tensor.shape_signature or tensor.shape, dtype=np.dtype(tensor.dtype))
        for name, tensor in zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepresentativeSamples:
    """Checked calibration samples.

    Args:
        samples: For each inference {input name: array of the input's shape and dtype}, in the dataset's order. An
            inference has as many samples as the model's batch size. The last one is filled up with the first samples.
        num_samples: How many samples there are, without those that fill up the last inference.
        num_requested: How many samples were requested; the dataset may have fewer.
        warnings: Possible problems of the samples, as sentences.
    """

    samples: list[dict[str, NDArray]]
    num_samples: int
    num_requested: int
    warnings: tuple[str, ...]

    def sha256(self) -> str:
        """Return the hex SHA-256 of the samples' names, dtypes, shapes and bytes, in order."""
        digest = SampleDigest()
        for sample in self.samples:
            digest.add(sample)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return {
            "num_samples": self.num_samples,
            "num_requested": self.num_requested,
            "sha256": self.sha256(),
            "warnings": list(self.warnings),
        }


def representative_samples(
    dataset: Any, inputs: Sequence[InputSpec], num_requested: int, model: bytes = b""
) -> RepresentativeSamples:
    """Return the first `num_requested` samples of `dataset`, checked and in batches of the model's batch size.

    Floats of any width become the input's float dtype. Integers for a float input are used as real values (a pixel of
    200 is 200.0), with a warning. Integers for an integer input must fit its type.

    Args:
        dataset: A callable or an iterable that yields lists (TFLite's convention), tuples, dicts or arrays; a
            tf.data.Dataset, batched or not, with or without labels; an array (n, ...), a dict of arrays, a `Split` or
            `SplitStream`; or {signature: [{name: array}]}. Batches are split into samples. No more elements are read
            than are needed.
        inputs: The model's inputs. If they share no batch dimension, a sample has all arrays of one inference.
        num_requested: How many samples to return.
        model: The float model. With it, arrays of a list are compared with the model's own normalization.

    Returns:
        The samples. Too few samples, identical or constant ones and random noise are listed as warnings, which the
        caller shows and records.

    Raises:
        InputError: The dataset is empty, or a sample has a wrong number or name of inputs, a wrong shape or dtype, NaN
            or infinity. The message has the sample's index.
        ModelError: The model's batch size is too large; it is probably damaged.
    """
    if num_requested < 1:
        raise InputError(
            f"num_calibration_samples={num_requested}: expected at least 1",
            field="num_calibration_samples",
            got=num_requested,
        )
    if not inputs:
        raise InputError("representative_dataset cannot be used: the model has no input", field="model")
    samples: list[dict[str, NDArray]] = []
    casts: dict[str, str] = {}
    is_listed = len(inputs) > 1
    for element in elements_of(dataset, [spec.name for spec in inputs]):
        is_listed &= isinstance(element, (list, tuple))
        arrays = _arrays_of(element, inputs, len(samples))
        for row in _rows(arrays, inputs, len(samples), num_requested - len(samples), _source_of(dataset)):
            samples.append(_checked_sample(row, inputs, len(samples), casts))
        if len(samples) == num_requested:
            break
    if not samples:
        raise InputError(
            "representative_dataset is empty, expected samples of the model's inputs. A generator is used up after "
            "one pass: pass a function that returns a new one",
            field="representative_dataset",
            got=0,
        )
    problems = (*_count_warnings(len(samples), num_requested), *_constant_warnings(samples), *_noise_warnings(samples))
    order = order_warnings(samples, normalizations(model) if model else {}) if is_listed else ()
    warnings = (*order, *casts.values(), *problems)
    return RepresentativeSamples(
        samples=_batches(samples, common_batch_size(inputs) or 1),
        num_samples=len(samples),
        num_requested=num_requested,
        warnings=warnings,
    )


def _batches(samples: list[dict[str, NDArray]], size: int) -> list[dict[str, NDArray]]:
    """Return the samples in batches of `size`; the last batch is filled up with the first samples.

    Raises:
        ModelError: A batch is too large; the model is probably damaged.
    """
    if size == 1:
        return samples
    for name, sample in samples[0].items():
        check_input_size(name, size, size * sample.nbytes)
    groups = np.arange(-(-len(samples) // size) * size).reshape(-1, size) % len(samples)
    return [{name: np.concatenate([samples[i][name] for i in group]) for name in samples[0]} for group in groups]


def check_shapes(split: Split | SplitStream, inputs: Sequence[InputSpec]) -> None:
    """Check that the first example of a split has the shapes of the model's inputs.

    Raises:
        InputError: It has other shapes, or other inputs.
    """
    split = split.take(1)
    for element in elements_of(split, [spec.name for spec in inputs]):
        next(_rows(_arrays_of(element, inputs, 0), inputs, 0, 1, _source_of(split)))


def _source_of(dataset: Any) -> str:
    """Return the data source and the name of a split, for messages; "" for other datasets."""
    return f"{dataset.source} ({dataset.name})" if isinstance(dataset, (Split, SplitStream)) else ""


def _arrays_of(element: Any, inputs: Sequence[InputSpec], index: int) -> list[NDArray]:
    """Return the arrays of an element in the order of the inputs."""
    where = f"representative_dataset: sample {index}"
    names = [spec.name for spec in inputs]
    if isinstance(element, Mapping):
        try:
            values = bind_inputs(element, names)
        except InputError as error:
            field = f"representative_dataset[{index}]"
            raise InputError(
                f"{where}: {error}", field=field, expected=error.expected, got=error.got, limit=error.limit
            ) from error
    elif isinstance(element, (list, tuple)):
        values = list(element)
    else:
        values = [element]
    if len(values) != len(inputs):
        raise InputError(
            f"{where} has {len(values)} arrays, expected {len(inputs)}, one for each input ({', '.join(names)}). "
            "Yield a list with one array per input, without labels",
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
            f"{where} cannot be converted to an array: {error}",
            field=_field(index, name),
            expected="numbers of one shape",
        ) from error
    # ml_dtypes' bfloat16 has the kind V although it is a number.
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise InputError(
            f"{where}: expected an array of numbers, got {type(value).__name__} of {array.dtype}",
            field=_field(index, name),
            expected="numbers",
            got=str(array.dtype),
        )
    return array


def _rows(
    arrays: list[NDArray], inputs: Sequence[InputSpec], index: int, limit: int, source: str
) -> Iterator[list[NDArray]]:
    """Yield at most `limit` samples of an element: itself, or the rows of a batch."""
    batches: dict[str, NDArray] = {}
    batch_size = common_batch_size(inputs)
    for array, spec in zip(arrays, inputs, strict=True):
        shape = sample_shape(spec.shape, batch_size)
        if not shape_fits(array.shape, shape) and not (array.ndim and shape_fits(array.shape[1:], shape)):
            message = (
                f"{source}: the examples have shape {array.shape[1:]}, but the model's input {spec.name!r} has shape "
                f"{_shape_text(shape)}"
                if source
                else f"representative_dataset: sample {index}, input {spec.name!r} has shape {array.shape}, expected "
                f"{_shape_text(shape)} for a single sample or {_shape_text(shape, 'n')} for a batch"
            )
            raise InputError(
                f"{message}{_advice(inputs, spec, array.shape)}",
                field=_field(index, spec.name),
                expected=shape,
                got=array.shape,
            )
        batches[spec.name] = array if array.ndim == len(shape) + 1 else array[None]
    lengths = {name: len(batch) for name, batch in batches.items()}
    if len(set(lengths.values())) > 1:
        message = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"representative_dataset: sample {index} has batches of different lengths ({message}). Yield the same "
            "number of rows for every input",
            field=f"representative_dataset[{index}]",
            got=lengths,
        )
    length = next(iter(lengths.values()))
    if not length:
        raise InputError(
            f"representative_dataset: sample {index} is an empty batch, expected at least one row",
            field=f"representative_dataset[{index}]",
            got=0,
        )
    for row in range(min(length, limit)):
        # An input without a batch dimension gets the row itself.
        yield [
            batch[row : row + 1] if batch.ndim == len(spec.shape) else np.asarray(batch[row])
            for batch, spec in zip(batches.values(), inputs, strict=True)
        ]


def _advice(inputs: Sequence[InputSpec], spec: InputSpec, shape: tuple[int, ...]) -> str:
    """Return the end of an error message about the shape of a sample."""
    if common_batch_size(inputs) is None:
        shapes = ", ".join(f"{item.name} {_shape_text(item.shape)}" for item in inputs)
        return (
            f". The inputs ({shapes}) share no batch dimension, so a sample has the arrays of a whole inference. Give "
            "all inputs the same first dimension to pass single examples"
        )
    for other in inputs:
        if other is not spec and (shape_fits(shape[1:], other.shape[1:]) or shape_fits(shape, other.shape[1:])):
            return (
                f". It has the shape of input {other.name!r}: a list must have the arrays in the order of the model's "
                f"inputs ({', '.join(item.name for item in inputs)}). Yield a dict by input name instead"
            )
    return image_advice(spec.shape, shape)


def _field(index: int, name: str) -> str:
    return f"representative_dataset[{index}][{name!r}]"


def _shape_text(shape: tuple[int | None, ...], *first: str) -> str:
    sizes = [*first, *("any" if size in (None, -1) else str(size) for size in shape)]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def image_advice(expected: Sequence[int | None], shape: Sequence[int]) -> str:
    """Return the end of an error message that says how to make images fit a model; "" for other data.

    Args:
        expected: The shape of the model's input with the batch dimension; None and -1 stand for any size.
        shape: The shape of an image or of a batch of images.
    """
    if len(expected) != 4 or len(shape) not in (3, 4):
        return ""
    if (shape[-1], expected[3]) in ((1, 3), (3, 1)):
        got, needed, mode = ("grayscale", "color", "RGB") if shape[-1] == 1 else ("color", "grayscale", "L")
        return (
            f". The images are {got} and the model expects {needed} images ({expected[3]} channels, got {shape[-1]}): "
            f'convert the files, for example with Pillow\'s Image.open(path).convert("{mode}")'
        )
    is_image = expected[3] == shape[-1] and not {None, -1} & set(expected[1:])
    return f". Resize the images with data.resize={expected[1]},{expected[2]}" if is_image else ""


def _checked_sample(
    row: list[NDArray], inputs: Sequence[InputSpec], index: int, casts: dict[str, str]
) -> dict[str, NDArray]:
    sample = {}
    for array, spec in zip(row, inputs, strict=True):
        if np.dtype(spec.dtype).kind == "f":
            sample[spec.name] = _to_float(array, spec, index, casts)
        else:
            sample[spec.name] = _to_integer(array, spec, index)
    return sample


def _to_float(array: NDArray, spec: InputSpec, index: int, casts: dict[str, str]) -> NDArray:
    where = f"representative_dataset: sample {index}, input {spec.name!r}"
    if array.dtype.kind in "iub":
        casts.setdefault(
            spec.name,
            f"{where} is {array.dtype}, and its numbers ({array.min()} to {array.max()}) are used as real values, not "
            f"as quantized values. Cast it to {spec.dtype}, and scale it as in training",
        )
    with np.errstate(over="ignore"):  # a value that is too large becomes infinity and is reported as such
        array = array.astype(spec.dtype)
    if not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise InputError(
            f"{where} holds {what}, expected finite numbers. Remove or fix this sample",
            field=_field(index, spec.name),
            expected="finite numbers",
            got=what,
        )
    return array


def _to_integer(array: NDArray, spec: InputSpec, index: int) -> NDArray:
    where = f"representative_dataset: sample {index}, input {spec.name!r}"
    expected = np.dtype(spec.dtype)
    # A source returns small integers as floats, because it does not know what they mean. Integral floats are accepted.
    is_integral = array.dtype.kind == "f" and np.array_equal(array, np.rint(array))
    if not is_integral and array.dtype.kind not in ("iub" if expected.kind in "iu" else "b"):
        raise InputError(
            f"{where} is {array.dtype}, expected {spec.dtype}. Cast it in the dataset",
            field=_field(index, spec.name),
            expected=spec.dtype,
            got=str(array.dtype),
        )
    cast = array.astype(expected)
    if not np.array_equal(cast, array):
        raise InputError(
            f"{where} ranges from {array.min()} to {array.max()}, expected values that fit {spec.dtype}. Check that "
            "the inputs are in the right order",
            field=_field(index, spec.name),
            expected=spec.dtype,
            got=(array.min(), array.max()),
        )
    return cast


def _count_warnings(count: int, num_requested: int) -> list[str]:
    warnings = []
    if count < num_requested:
        warnings.append(f"representative_dataset: {num_requested} samples were requested, but it has {count}")
    if count < _FEW_SAMPLES:
        warnings.append(
            f"representative_dataset has only {count} samples: ranges from fewer than {_FEW_SAMPLES} samples are "
            "unreliable, and values outside of them will be clipped. Use 100 or more"
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
        warnings.append(
            f"representative_dataset: input {name!r} {what}: its ranges do not fit real data. Use different real "
            "examples"
        )
    return warnings


def _noise_warnings(samples: list[dict[str, NDArray]]) -> list[str]:
    warnings = []
    for name, first in samples[0].items():
        same_shape = [sample[name] for sample in samples if sample[name].shape == first.shape]
        rows = [np.atleast_1d(array) for array in same_shape[: noise_sample_size(first.size)]]
        verdict = judge_noise(np.concatenate(rows))
        if verdict.is_noise:
            warnings.append(
                f"representative_dataset: input {name!r} looks like random noise ({verdict.reason}): ranges from noise "
                "do not fit real data, and values will be clipped. Calibrate with real examples"
            )
    return warnings
