# SPDX-License-Identifier: Apache-2.0
"""The content of a flatbuffer as frozen records. Every index in them is valid, so callers need no bounds checks."""

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
    """One tensor of a subgraph.

    shape: every dimension >= 0, their product below 2**62.
    shape_signature: the same with -1 where a dimension is dynamic; equal to shape where nothing is.
    dtype: "int8", "float32", "int32", ... as NumPy spells it, or the schema's own word ("int4", "resource").
    scale, zero_point: as many as each other: none, one (per_tensor), or one a slice of `quantized_dimension`
        (per_channel). A scale may be any float32, NaN among them: the audit judges it.
    is_constant: the file holds its values. buffer_offset: where, in bytes from the start. buffer_bytes: 0 otherwise.
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
        """Whether its values stand for real numbers: it has a scale."""
        return bool(self.scale)


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of a subgraph, in order of execution.

    name: the schema's ("CONV_2D"), or UNKNOWN_<code> for a code that this version of the schema does not have.
    inputs, intermediates: tensor indices, ABSENT (-1) where an optional one is left out. outputs: tensor indices.
    custom_code: the name of a custom op ("FlexErf"), empty for the others.
    keras_layer: the layer that it came from, None where that cannot be traced.
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
        """Every tensor of the op: inputs, outputs, intermediates, in this order and without absent ones."""
        return tuple(index for index in (*self.inputs, *self.outputs, *self.intermediates) if index != ABSENT)


@dataclass(frozen=True, kw_only=True)
class Subgraph:
    """A graph of ops over tensors. inputs, outputs: tensor indices in the model's order.

    `producers` and `readers` lead from a tensor to its ops; they are computed once.
    """

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def producers(self) -> Mapping[int, Op]:
        """{tensor: the op that computes it}, of every tensor that is an output of an op."""
        return {output: op for op in reversed(self.ops) for output in op.outputs}

    @functools.cached_property
    def readers(self) -> Mapping[int, tuple[Op, ...]]:
        """{tensor: the ops that read it, each once}, of every tensor that an op reads."""
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
        """{output of an op: the Keras layer of the op}, or the tensor's name if the layer is not known."""
        return {output: op.keras_layer or self.tensors[output].name for op in self.ops for output in op.outputs}

    def layer_of(self, op: Op) -> str:
        """Return the Keras layer of an op of this graph; if it is not known, the name of its first output."""
        return op.keras_layer or (self.tensors[op.outputs[0]].name if op.outputs else "no output")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names for the inputs and outputs of a subgraph: name -> tensor index."""

    key: str = "serving_default"
    subgraph: int = 0
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A whole flatbuffer. `metadata` leads from an entry's name to (offset, size) of its bytes in the file.

    buffer_bytes: what all constants and metadata take together. model_bytes: the file.
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
        """The names of its metadata entries."""
        return tuple(self.metadata)

    @property
    def main_subgraph(self) -> Subgraph:
        """The one that an interpreter runs when no signature is named."""
        return self.subgraphs[0]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of its inputs, in the main subgraph's order: the signature's if it has one, else the tensors'."""
        return self._names(self.main_subgraph.inputs, "inputs")

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of its outputs, likewise."""
        return self._names(self.main_subgraph.outputs, "outputs")

    def _names(self, indices: tuple[int, ...], side: str) -> tuple[str, ...]:
        main = self.main_subgraph
        signature = next((signature for signature in self.signatures if signature.subgraph == main.index), None)
        named = {} if signature is None else {index: name for name, index in getattr(signature, side).items()}
        return tuple(named.get(index, main.tensors[index].name) for index in indices)


def constant_values(data: bytes, tensor: Tensor) -> NDArray:
    """Return the values of a constant tensor of `data`, in its shape and dtype; a read-only view.

    Raises InputError when it is no constant, is stored sparse or packed (int4), or has another number of bytes than
    its shape wants.
    """
    try:
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
    except TypeError as error:
        raise InputError(
            f"tensor {tensor.name!r} is {tensor.dtype}: NumPy has no such type", field=tensor.name, got=tensor.dtype
        ) from error
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if not tensor.is_constant or tensor.is_sparse or dtype.hasobject or tensor.buffer_bytes != wanted:
        got = f"{'a sparse' if tensor.is_sparse else 'a dense'} one of {tensor.buffer_bytes}"
        raise InputError(
            f"tensor {tensor.name!r}: expected a dense constant of {wanted} bytes, got {got}",
            field=tensor.name,
            expected=wanted,
            got=got,
        )
    return np.frombuffer(data, dtype, math.prod(tensor.shape), tensor.buffer_offset).reshape(tensor.shape)
