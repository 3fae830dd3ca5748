# SPDX-License-Identifier: Apache-2.0
"""The content of a flatbuffer as frozen records.

All indices in them are valid, so callers need no bounds checks.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError

ABSENT = -1


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a subgraph.

    Attributes:
        index: Its index in the subgraph.
        name: Its name in the file.
        shape: The dimensions, each >= 0, their product below 2**62.
        shape_signature: The same with -1 for dynamic dimensions.
        dtype: The type in NumPy's spelling ("int8", "float32"), or the schema's if NumPy has none ("int4", "resource").
        scale: The scales: none, one (per_tensor), or one per slice of `quantized_dimension` (per_channel). A scale may
            be any float32, including NaN; the audit checks it.
        zero_point: As many zero points.
        quantized_dimension: The axis of the channels.
        is_constant: Whether the file contains its values.
        is_variable: Whether it keeps its value between inferences.
        is_sparse: Whether its values are stored in a sparse format.
        buffer_offset: The position of a constant's values in the file, in bytes.
        buffer_bytes: Their number; 0 for other tensors.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    quantized_dimension: int = 0
    is_constant: bool = False
    is_variable: bool = False
    is_sparse: bool = False
    buffer_offset: int = 0
    buffer_bytes: int = 0

    @property
    def is_dynamic(self) -> bool:
        """Whether a dimension is known only when the model runs."""
        return ABSENT in self.shape_signature

    @property
    def is_quantized(self) -> bool:
        """Whether its values are integers that represent real numbers, which means that it has a scale."""
        return bool(self.scale) and self.dtype.startswith(("int", "uint"))


@dataclass(frozen=True, kw_only=True)
class Op:
    """An operator of a subgraph. Ops are in the order of execution.

    Attributes:
        index: Its number in the subgraph.
        name: Its name in the schema ("CONV_2D"), or UNKNOWN_<code> for a code that this version of the schema lacks.
        version: Its version.
        inputs: Tensor indices; ABSENT (-1) for a missing optional input.
        outputs: Tensor indices.
        intermediates: Tensor indices; ABSENT (-1) for a missing one.
        custom_code: The name of a custom op ("FlexErf"); empty for other ops.
        keras_layer: The Keras layer that it came from; None if it is unknown.
    """

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    intermediates: tuple[int, ...] = ()
    custom_code: str = ""
    keras_layer: str | None = None

    @property
    def tensors(self) -> tuple[int, ...]:
        """All tensors of the op: inputs, outputs, intermediates, in this order and without absent ones."""
        return tuple(index for index in (*self.inputs, *self.outputs, *self.intermediates) if index != ABSENT)


@dataclass(frozen=True, kw_only=True)
class Subgraph:
    """A graph of ops over tensors.

    Attributes:
        index: Its number in the file.
        name: Its name in the file.
        tensors: Its tensors.
        ops: Its ops in the order of execution.
        inputs: Tensor indices in the model's order.
        outputs: Tensor indices in the model's order.
    """

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def producers(self) -> Mapping[int, Op]:
        """Tensor -> the op that computes it, for each output of an op."""
        return {output: op for op in reversed(self.ops) for output in op.outputs}

    @functools.cached_property
    def readers(self) -> Mapping[int, tuple[Op, ...]]:
        """Tensor -> the ops that read it, each once."""
        results: dict[int, list[Op]] = {}
        for op in self.ops:
            for index in dict.fromkeys(op.inputs):
                if index != ABSENT:
                    results.setdefault(index, []).append(op)
        return {index: tuple(ops) for index, ops in results.items()}

    @property
    def input_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the inputs."""
        return tuple(self.tensors[index] for index in self.inputs)

    @property
    def output_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the outputs."""
        return tuple(self.tensors[index] for index in self.outputs)

    @property
    def layers_by_output(self) -> dict[int, str]:
        """Output tensor of an op -> the Keras layer of the op, or the tensor's name if the layer is unknown."""
        return {output: op.keras_layer or self.tensors[output].name for op in self.ops for output in op.outputs}

    def layer_of(self, op: Op) -> str:
        """Return the Keras layer of an op of this graph, or the name of its first output if the layer is unknown."""
        return op.keras_layer or (self.tensors[op.outputs[0]].name if op.outputs else "no output")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The names of the inputs and outputs of a subgraph.

    Attributes:
        key: The name of the signature.
        subgraph: The index of the subgraph.
        inputs: Name -> tensor index.
        outputs: Name -> tensor index.
    """

    key: str = "serving_default"
    subgraph: int = 0
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The content of a flatbuffer.

    Attributes:
        version: The version of the schema.
        description: The description in the file.
        subgraphs: Its subgraphs; the first is the main one.
        signatures: Its signatures.
        metadata: Name of a metadata entry -> (offset, size) of its bytes in the file.
        buffer_bytes: The size of all constants and metadata, in bytes.
        model_bytes: The size of the file, in bytes.
    """

    version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    metadata: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    buffer_bytes: int
    model_bytes: int

    @property
    def metadata_names(self) -> tuple[str, ...]:
        """The names of the metadata entries."""
        return tuple(self.metadata)

    @property
    def main_subgraph(self) -> Subgraph:
        """The subgraph that an interpreter runs if no signature is named."""
        return self.subgraphs[0]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs in the main subgraph's order: those of its signature, or else of the tensors."""
        return self._names(self.main_subgraph.inputs, "inputs")

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs in the main subgraph's order: those of its signature, or else of the tensors."""
        return self._names(self.main_subgraph.outputs, "outputs")

    def _names(self, indices: tuple[int, ...], side: str) -> tuple[str, ...]:
        main = self.main_subgraph
        signature = next((signature for signature in self.signatures if signature.subgraph == main.index), None)
        named = {} if signature is None else {index: name for name, index in getattr(signature, side).items()}
        return tuple(named.get(index, main.tensors[index].name) for index in indices)


def constant_values(data: bytes, tensor: Tensor) -> NDArray:
    """Return the values of a constant tensor of `data` as a read-only view, in its shape and dtype.

    Raises:
        InputError: The tensor is not constant, is stored sparse or packed (int4), or its number of bytes does not match
            its shape.
    """
    try:
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
    except TypeError as error:
        raise InputError(
            f"tensor {tensor.name!r} is {tensor.dtype}, which NumPy does not support",
            field=tensor.name,
            got=tensor.dtype,
            limit="unknown-dtypes",
        ) from error
    expected = math.prod(tensor.shape) * dtype.itemsize
    if not tensor.is_constant or tensor.is_sparse or dtype.hasobject or tensor.buffer_bytes != expected:
        got = f"{'a sparse' if tensor.is_sparse else 'a dense'} one of {tensor.buffer_bytes}"
        raise InputError(
            f"tensor {tensor.name!r}: expected a dense constant of {expected} bytes, got {got}",
            field=tensor.name,
            expected=expected,
            got=got,
        )
    return np.frombuffer(data, dtype, math.prod(tensor.shape), tensor.buffer_offset).reshape(tensor.shape)
