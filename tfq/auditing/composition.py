# SPDX-License-Identifier: Apache-2.0
"""Determine the scheme of a flatbuffer from the tensors of its ops."""

from tfq.auditing.schemes import FLOATS, HANDLES, INDEX_TYPES, NARROW, has_raw_scale, is_hybrid, lookups
from tfq.tflite.index_values import unquantized_integers
from tfq.tflite.op_types import COMPILED_OPS, CUSTOM_KERNELS, INDEX, RANGE, WIDE, roles
from tfq.tflite.records import Model, Op, Subgraph

# `Composition.scheme` -> the scheme of ConversionConfig that produces it.
CONVERTED = {
    "full_int8": "int8",
    "int8_float_io": "int8",
    "int8_uint8_io": "int8",
    "int16x8": "int16x8",
    "dynamic_range": "dynamic_range",
    "float16": "float16",
    "float32": "float32",
    "weight_only": "weight_only_int8",
    "weight_only_int4": "weight_only_int4",
    "weight_only_int2": "weight_only_int2",
}

_WITHOUT_REAL_VALUES = frozenset(INDEX_TYPES) | HANDLES


class Composition:
    """The types of a model's real values.

    Attributes:
        activations: The types of activations. Values that are only copied from a constant, as an embedding's rows are,
            do not count if there are others.
        constants: The types of constants that ops read directly.
        dequantized: The stored types of constants that are dequantized before use.
        is_hybrid: Whether an op computes on float activations with integer weights.
        has_foreign_ops: Whether there are unknown ops, or custom ops whose types say nothing about their computation.
        borders: The types of the model's inputs and outputs.
        scheme: The scheme, as in `AuditReport`.
    """

    def __init__(self, model: Model) -> None:
        """Collect the types of all ops of `model`."""
        self.activations: set[str] = set()
        self.constants: set[str] = set()
        self.dequantized: set[str] = set()
        self.is_hybrid = self.has_foreign_ops = False
        self._looked_up: set[str] = set()
        graph = model.main_subgraph
        plain = unquantized_integers(graph)
        self.borders = {
            graph.tensors[index].dtype
            for index in (*graph.inputs, *graph.outputs)
            if index not in plain
            and not (graph.tensors[index].dtype == "int16" and has_raw_scale(graph.tensors[index]))
        }
        for graph in model.subgraphs:
            border = frozenset((*graph.inputs, *graph.outputs))
            plain = unquantized_integers(graph)
            copied = lookups(graph) - plain
            for op in graph.ops:
                self._add(graph, op, border, plain, copied)
        looked_up = self._looked_up
        if self.activations <= FLOATS and looked_up - FLOATS:
            if self.activations:  # a float model that looks rows up in integer tables
                self.dequantized |= looked_up - FLOATS
            self.activations = self.activations or looked_up
        self.scheme = self._scheme()

    def _add(
        self, graph: Subgraph, op: Op, border: frozenset[int], plain: frozenset[int], copied: frozenset[int]
    ) -> None:
        is_custom = op.name == "CUSTOM" and op.custom_code not in {*CUSTOM_KERNELS, *COMPILED_OPS}
        self.has_foreign_ops |= is_custom or op.name.startswith("UNKNOWN_")
        self.is_hybrid |= is_hybrid(graph, op)
        converts = op.name in ("QUANTIZE", "DEQUANTIZE") or (
            op.name == "CAST" and has_raw_scale(graph.tensors[op.inputs[0]])
        )
        for _, _, index, role in roles(op):
            tensor = graph.tensors[index]
            if role in (INDEX, WIDE, RANGE) or tensor.dtype in _WITHOUT_REAL_VALUES or index in plain:
                continue
            if tensor.is_constant and op.name == "DEQUANTIZE":
                self.dequantized.add(tensor.dtype)
            elif index in copied:
                self._looked_up.add(tensor.dtype)
            elif tensor.is_constant:
                self.constants.add(tensor.dtype)
            elif not (converts and index in border):
                self.activations.add(tensor.dtype)

    def _scheme(self) -> str:
        if not self.activations and not self.constants:
            return "no_data"
        if self.activations and self.activations <= FLOATS:
            return self._float_scheme()
        if self.activations == {"int16"}:
            return "int16x8" if self.constants <= {"int8", "int16"} else "mixed"
        if self.activations == {"uint8"}:
            return "full_uint8" if self.constants <= {"uint8"} else "mixed"
        if self.activations != {"int8"} or self.has_foreign_ops or self.dequantized:
            return "mixed"
        if self.constants & NARROW:
            return "int4_weights" if self.constants <= NARROW | {"int8"} else "mixed"
        if not self.constants <= {"int8"}:
            return "mixed"
        others = self.borders - {"int8"} - _WITHOUT_REAL_VALUES
        if not others:
            return "full_int8"
        if others == {"uint8"}:
            return "int8_uint8_io"
        return "int8_float_io" if others <= {"float32", "uint8"} else "mixed"

    def _float_scheme(self) -> str:
        half = bool((self.dequantized | self.constants | self.activations) & {"float16", "bfloat16"})
        weight_only = bool(self.dequantized - FLOATS)
        if half and (weight_only or self.is_hybrid):
            return "mixed"
        # A dynamic-range model also dequantizes the weights of ops that have no hybrid kernel.
        if self.is_hybrid:
            return "dynamic_range"
        if half:
            return "float16"
        # Integer constants that no float op reads as weights (such as a table) do not determine a scheme.
        if not weight_only:
            return "float32"
        stored = self.dequantized - FLOATS
        return f"weight_only_{min(stored)}" if stored in ({"int4"}, {"int2"}) else "weight_only"
