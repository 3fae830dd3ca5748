# SPDX-License-Identifier: Apache-2.0
"""The types in tfq's public signatures that no other package provides.

Keras, tf_keras and TensorFlow have no type information. The protocols here list the attributes of their objects that
tfq and its users need. Both Keras versions satisfy each protocol.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A TFLite flatbuffer: its content, or the path of its file.
PathOrBytes: TypeAlias = bytes | bytearray | str | os.PathLike[str]
# A JSON object; the only values of the public API without a static type.
JSON: TypeAlias = dict[str, Any]
# Examples, in any form that `tfq.data.as_split` accepts; checked when they are used.
Data: TypeAlias = object


class KerasTensor(Protocol):
    """A symbolic tensor of either Keras: an input or output of a layer, without a value."""

    @property
    def shape(self) -> Sequence[int | None]:
        """The shape; None for an unknown dimension."""


class TensorFlowTensor(Protocol):
    """A tensor of a TensorFlow graph."""

    @property
    def name(self) -> str:
        """The name."""


class TensorFlowFunction(Protocol):
    """A concrete function of TensorFlow: a traced graph."""

    @property
    def inputs(self) -> Sequence[TensorFlowTensor]:
        """The input tensors."""

    @property
    def outputs(self) -> Sequence[TensorFlowTensor]:
        """The output tensors."""


class KerasLayer(Protocol):
    """A layer of either Keras."""

    trainable: bool

    @property
    def name(self) -> str:
        """The name."""

    @property
    def weights(self) -> Sequence[object]:
        """The variables."""

    @property
    def get_weights(self) -> "Callable[[], list[NDArray]]":
        """Returns the values of the variables as arrays."""

    def __call__(self, inputs: KerasTensor, /) -> KerasTensor:
        """Apply the layer to a symbolic tensor."""
        ...


class KerasModel(Protocol):
    """A model of either Keras: functional or sequential, of Keras 3 or tf_keras.

    The methods accept what Keras documents for them; their arguments are not typed here.
    """

    @property
    def name(self) -> str:
        """The name."""

    @property
    def layers(self) -> Sequence[KerasLayer]:
        """The layers, in the order of the model."""

    @property
    def get_weights(self) -> "Callable[[], list[NDArray]]":
        """Returns the values of the variables as arrays."""

    @property
    def set_weights(self) -> "Callable[[list[NDArray]], object]":
        """Sets the variables to the values of arrays."""

    @property
    def count_params(self) -> Callable[[], int]:
        """Returns the number of scalars in all variables."""

    @property
    def compile(self) -> Callable[..., object]:
        """Sets optimizer, loss and metrics."""

    @property
    def fit(self) -> Callable[..., object]:
        """Trains the model."""

    @property
    def evaluate(self) -> Callable[..., object]:
        """Computes loss and metrics on data."""

    @property
    def predict(self) -> Callable[..., object]:
        """Computes outputs."""

    @property
    def save(self) -> Callable[..., object]:
        """Saves the model to a file."""


# Trains a model in place: fit(model, callbacks), where the callbacks must be passed on to `model.fit`.
Fit: TypeAlias = Callable[[KerasModel, list[object]], object]
# One or several models that a student is trained towards.
Teacher: TypeAlias = KerasModel | Sequence[KerasModel]
# The arrays of a layer's weights, in the order of its `get_weights()`.
Arrays: TypeAlias = list["NDArray"]
# metric(outputs, labels) -> float. outputs: an array, or a tuple of arrays if the model has several outputs.
MetricFunction: TypeAlias = (
    Callable[["NDArray", "NDArray"], float] | Callable[["tuple[NDArray, ...]", "NDArray"], float]
)
# The preprocessing of the data: "resize", "scale" and "offset".
Preprocessing: TypeAlias = Mapping[str, object]
