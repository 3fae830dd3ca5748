# SPDX-License-Identifier: Apache-2.0
"""The types in tfq's public signatures that no other package provides.

Keras, tf_keras and TensorFlow have no type information. Their objects are described here by protocols that list what
tfq and its users need of them. Both Keras versions satisfy each protocol.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A TFLite flatbuffer: its content, or the path of its file.
PathOrBytes: TypeAlias = bytes | bytearray | str | os.PathLike[str]
# A JSON object. Its values are the one place of the public API that has no static type.
JSON: TypeAlias = dict[str, Any]
# Examples: whatever `tfq.data.as_split` takes. It is checked when it is used.
Data: TypeAlias = object


class KerasTensor(Protocol):
    """A symbolic tensor of either Keras: an input or an output of a layer that is not computed yet."""

    @property
    def shape(self) -> Sequence[int | None]: ...


class TensorFlowTensor(Protocol):
    """A tensor of a TensorFlow graph."""

    @property
    def name(self) -> str: ...


class TensorFlowFunction(Protocol):
    """A concrete function of TensorFlow: a traced graph."""

    @property
    def inputs(self) -> Sequence[TensorFlowTensor]: ...

    @property
    def outputs(self) -> Sequence[TensorFlowTensor]: ...


class KerasLayer(Protocol):
    """A layer of either Keras."""

    trainable: bool

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> Sequence[object]: ...

    @property
    def get_weights(self) -> "Callable[[], list[NDArray]]": ...

    def __call__(self, inputs: KerasTensor, /) -> KerasTensor: ...


class KerasModel(Protocol):
    """A model of either Keras: functional or sequential, of Keras 3 or tf_keras.

    The methods take what Keras documents for them; tfq does not describe their arguments.
    """

    @property
    def name(self) -> str: ...

    @property
    def layers(self) -> Sequence[KerasLayer]: ...

    @property
    def get_weights(self) -> "Callable[[], list[NDArray]]": ...

    @property
    def set_weights(self) -> "Callable[[list[NDArray]], object]": ...

    @property
    def count_params(self) -> Callable[[], int]: ...

    @property
    def compile(self) -> Callable[..., object]: ...

    @property
    def fit(self) -> Callable[..., object]: ...

    @property
    def evaluate(self) -> Callable[..., object]: ...

    @property
    def predict(self) -> Callable[..., object]: ...

    @property
    def save(self) -> Callable[..., object]: ...


# Trains a model in place: called with the model and the callbacks to pass on to `model.fit`.
Fit: TypeAlias = Callable[[KerasModel, list[object]], object]
# One or several models that a student is trained towards.
Teacher: TypeAlias = KerasModel | Sequence[KerasModel]
# The arrays of a layer's weights, in the order of its `get_weights()`.
Arrays: TypeAlias = list["NDArray"]
# metric(outputs, labels) -> float. outputs: an array, or a tuple of arrays if the model has several outputs.
MetricFunction: TypeAlias = (
    Callable[["NDArray", "NDArray"], float] | Callable[["tuple[NDArray, ...]", "NDArray"], float]
)
# What was done to the data before the model sees them: "resize", "scale" and "offset".
Preprocessing: TypeAlias = Mapping[str, object]
