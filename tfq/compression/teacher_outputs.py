# SPDX-License-Identifier: Apache-2.0
"""Keep the outputs of teachers for all training examples, so that an example goes through them once per training.

The outputs belong to examples, not to batches: they are shuffled with the examples of arrays, and looked up by the
place of an example in a stream. They are right as long as an example is the same in every epoch. That is so for arrays.
A stream is read again in each epoch, and its source might change the examples, such as an augmentation in a plugin.
Therefore the first examples are read twice, and a checksum of each example is compared in every epoch.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.config import TrainConfig
from tfq.data import AnySplit, Split, SplitStream, bind_inputs
from tfq.data.split import batches_in_order
from tfq.errors import InputError, warn

# The name of an input that numbers the examples of a stream. No model has it.
_NUMBER = "\0number"
EVERY_EPOCH = "computed in every epoch"

# For each teacher, the arrays (n, ...) of its outputs.
Outputs = tuple[tuple[NDArray, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherOutputs:
    """The outputs of teachers for the examples of a split.

    Args:
        arrays: The outputs.
        checksums: A checksum of the inputs of each example, (n,); None for examples in memory.
        source: What to call the data in messages.
    """

    arrays: Outputs
    checksums: NDArray[np.uint32] | None
    source: str

    @property
    def num_bytes(self) -> int:
        """The size of all arrays."""
        return sum(array.nbytes for outputs in self.arrays for array in outputs)

    def of(self, split: Split) -> tuple[Split, Outputs]:
        """Return a batch of a `numbered` stream without its numbers, and the outputs of its examples.

        Raises:
            InputError: An example is another one than that which the teachers saw.
        """
        numbers = split.inputs[_NUMBER]
        inputs = {name: array for name, array in split.inputs.items() if name != _NUMBER}
        if self.checksums is not None:
            changed = _checksums(inputs) != self.checksums[numbers]
            if changed.any():
                number = int(numbers[int(changed.argmax())])
                raise InputError(
                    f"{self.source}: example {number} is not the one that the teachers saw when the training began, so "
                    "their outputs for it are wrong. If the data source augments its examples, set "
                    "training.teacher_cache_mb=0",
                    field="training.teacher_cache_mb",
                    expected=0,
                    got=number,
                )
        arrays = tuple(tuple(array[numbers] for array in outputs) for outputs in self.arrays)
        return dataclasses.replace(split, inputs=inputs), arrays


def numbered(stream: SplitStream) -> SplitStream:
    """Return a stream whose examples also have their place in it, for `TeacherOutputs.of`."""

    def read(start: int, stop: int) -> Iterator[Split]:
        for piece in stream.read(start, stop):
            numbers = np.arange(start, start + piece.num_examples)
            start += piece.num_examples
            yield dataclasses.replace(piece, inputs={**piece.inputs, _NUMBER: numbers})

    return dataclasses.replace(stream, read=read)


def _checksums(inputs: Mapping[str, NDArray]) -> NDArray[np.uint32]:
    """Return the CRC-32 of the inputs of each example, (n,)."""
    arrays = [np.ascontiguousarray(array) for array in inputs.values()]
    results = np.zeros(len(arrays[0]), np.uint32)
    for index in range(len(results)):
        value = 0
        for array in arrays:
            value = zlib.crc32(array[index : index + 1].view(np.uint8).data, value)
        results[index] = value
    return results


def kept_outputs(
    outputs_of: Callable[[Any], Any], names: Sequence[str], train: AnySplit, config: TrainConfig
) -> tuple[TeacherOutputs | None, str]:
    """Return the outputs of teachers for all examples, and a sentence for the record.

    Args:
        outputs_of: A batch of inputs -> for each teacher, the tensors (n, ...) of its outputs.
        names: The names of the inputs, in the model's order.
        train: The training examples. A stream is read once from its beginning to its end.
        config: `epochs`, `batch_size` and `teacher_cache_mb`.

    Returns:
        (None, the reason) if they are computed in every epoch. Except for a single epoch and for `teacher_cache_mb=0`,
        a TfqWarning says so.
    """
    if config.epochs == 1:
        return None, "computed once, because there is one epoch"
    if config.teacher_cache_mb == 0:
        return None, f"{EVERY_EPOCH}: teacher_cache_mb is 0"
    if isinstance(train, SplitStream) and (_checksums(train.first().inputs) != _checksums(train.first().inputs)).any():
        return None, _not_kept(f"{train.source} returns other examples whenever it is read, as an augmentation does")
    return _computed(outputs_of, names, train, config)


def _not_kept(reason: str) -> str:
    warn(f"the outputs of the teachers are {EVERY_EPOCH}, which takes longer than to keep them: {reason}")
    return f"{EVERY_EPOCH}: {reason}"


def _computed(
    outputs_of: Callable[[Any], Any], names: Sequence[str], train: AnySplit, config: TrainConfig
) -> tuple[TeacherOutputs | None, str]:
    import tensorflow as tf

    count, start = train.num_examples, 0
    checksums = np.zeros(count, np.uint32) if isinstance(train, SplitStream) else None
    arrays: Outputs = ()
    compute: Any = None
    with progress.stage(f"computing the teachers' outputs of {count:,} examples"):
        for batch in _batches(train, config.batch_size):
            inputs = bind_inputs(batch.inputs, list(names))
            x: Any = inputs if len(inputs) > 1 else inputs[0]
            if compute is None:
                like = tf.nest.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), x)
                compute = tf.function(outputs_of, input_signature=[like])
            results = [[tensor.numpy() for tensor in outputs] for outputs in compute(x)]
            if not arrays:
                example_bytes = sum(array[0].nbytes for outputs in results for array in outputs)
                if example_bytes * count > config.teacher_cache_mb * 1_000_000:
                    return None, _not_kept(
                        f"they have {_megabytes(example_bytes * count)}, and teacher_cache_mb is "
                        f"{config.teacher_cache_mb:,}"
                    )
                arrays = tuple(
                    tuple(np.empty((count, *array.shape[1:]), array.dtype) for array in outputs) for outputs in results
                )
            stop = start + batch.num_examples
            for kept, outputs in zip(arrays, results, strict=True):
                for array, values in zip(kept, outputs, strict=True):
                    array[start:stop] = values
            if checksums is not None:
                checksums[start:stop] = _checksums(batch.inputs)
            start = stop
    result = TeacherOutputs(arrays=arrays, checksums=checksums, source=f"{train.source}, split {train.name}")
    return result, f"computed once and kept ({_megabytes(result.num_bytes)})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _batches(train: AnySplit, batch_size: int) -> Iterator[Split]:
    if isinstance(train, SplitStream):
        yield from batches_in_order(train, batch_size)
        return
    for start in range(0, train.num_examples, batch_size):
        inputs = {name: array[start : start + batch_size] for name, array in train.inputs.items()}
        yield dataclasses.replace(train, inputs=inputs, labels=None)
