# SPDX-License-Identifier: Apache-2.0
"""Data on its way into a model: at once where it is in memory, else piece by piece while the model runs."""

from collections.abc import Iterator

from numpy.typing import NDArray

from tfq.backends.protocol import InputStream
from tfq.data import AnySplit, Split, SplitStream
from tfq.evaluation.inputs import Tallies, encode_inputs, prepare_inputs
from tfq.tflite import Model


class Feed:
    """What a RunRequest takes as inputs, and what is known of them once it has run.

    inputs: arrays in the model's own numbers, or a stream of them.
    """

    def __init__(self, model: Model, data: AnySplit) -> None:
        """Raises what `prepare_inputs` raises; of a stream, for its first piece, and for others as they are read."""
        self._model = model
        if isinstance(data, Split):
            prepared = prepare_inputs(model, data)
            self.inputs: tuple[NDArray, ...] | InputStream = prepared.arrays
            self._known = prepared.clipped_share, prepared.unused_share, prepared.warnings
            return
        self._data: SplitStream = data
        # What does not fit is told before a runner starts, not from within it.
        encode_inputs(model, data.first(), Tallies())
        self.inputs = InputStream(num_examples=data.num_examples, pieces=self._pieces)

    def _pieces(self) -> Iterator[tuple[NDArray, ...]]:
        tallies, done = Tallies(), 0
        for piece in self._data.pieces():
            arrays = encode_inputs(self._model, piece, tallies, done)
            done += piece.num_examples
            if done == self._data.num_examples:
                # Before the last piece is given: a runner need not ask for another.
                self._known = tallies.clipped_share, tallies.unused_share, tallies.warnings
            yield arrays

    @property
    def clipped_share(self) -> float | None:
        """As in `PreparedInputs`, like the next two; of a stream, after the run."""
        return self._known[0]

    @property
    def unused_share(self) -> float | None:
        return self._known[1]

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._known[2]
