# SPDX-License-Identifier: Apache-2.0
"""The forms that a representative dataset comes in, all turned into an iterator over elements.

An element is a list or tuple of arrays in input order, a mapping from input name to array, or a single array.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfq.data.binding import bind_inputs
from tfq.data.split import Split
from tfq.data.stream import SplitStream
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
                "representative_dataset: the function returned None: yield a list of arrays for each sample"
            )
        return elements_of(dataset, names)
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
        raise InputError(f"representative_dataset is {type(dataset).__name__}: {_WANTED}")
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
            f"wanted {_DEFAULT_SIGNATURE!r}, or a single one"
        )
    samples = samples() if callable(samples) else samples
    if isinstance(samples, (str, bytes, Mapping)) or not isinstance(samples, Iterable):
        raise InputError(
            f"representative_dataset: a signature holds {type(samples).__name__}: wanted [{{name: array}}, ...]"
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
