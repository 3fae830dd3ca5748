# SPDX-License-Identifier: Apache-2.0
"""Quantize models that read raw integers, such as uint8 pixels, and cast them to float first.

No quantizer has an integer form of that CAST: it would stay float, with a QUANTIZE after it. Instead, the model is
quantized as if the input were float, and the input of the result gets its type back. Its scale is 1 and its zero point
0, so callers pass raw integers. For int8 and uint8 the input is exact: the quantized input has a step of 1.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.fake_quant import Ranges
from tfq.conversion.graph_editing import add_tensor, name_of, new_op, quantize_op, replace_reads, scale_of, set_scale
from tfq.tflite.index_values import index_tensors, inputs_read_by_casts
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32 = TENSOR_TYPES.index("float32")
# The inputs that QUANTIZE reads.
_RAW_TYPES = ("uint8", "int8", "int16", "int32")
# Ranges with a step of 1, by scheme and type of the input.
_EXACT = {
    "int8": {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)},
    "int16x8": dict.fromkeys(("uint8", "int8", "int16"), (-32767.0, 32767.0)),
}
Samples = list[dict[str, NDArray]]


@dataclass(frozen=True, kw_only=True)
class RawInputs:
    """The inputs of a model that were raw integers and are float32 now.

    Attributes:
        types: {tensor of the input: its type in the original model}.
        names: Their names.
        ranges: {(subgraph, tensor): range} of those whose quantized form is exact.
        restored: Whether the result has the original types.
    """

    types: dict[int, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    ranges: Ranges = field(default_factory=dict)
    restored: bool = False

    def restore(self, model: bytes) -> bytes:
        """Return the integer flatbuffer `model` with the original types of these inputs."""
        if not self.restored or not self.names:
            return model
        parsed, edited = tflite.read(model), tflite.unpack(model)
        graph = edited.subgraphs[0]
        types = dict(zip(self.names, self.types.values(), strict=True))
        changed = False
        for name, index in zip(parsed.input_names, parsed.main_subgraph.inputs, strict=True):
            dtype = types.get(name)
            if dtype is None or parsed.main_subgraph.tensors[index].dtype in (dtype, "float32"):
                continue
            changed = True
            scale, zero_point = scale_of(graph, index)
            inner = TENSOR_TYPES[graph.tensors[index].type]
            raw = add_tensor(graph, index, name_of(graph, index))
            graph.tensors[raw].type = TENSOR_TYPES.index(dtype)
            set_scale(graph, raw, 1.0, 0)
            graph.tensors[index].name = f"{name_of(graph, index)}_quantized"
            graph.inputs = [raw if int(other) == index else int(other) for other in graph.inputs]
            for signature in edited.signatureDefs or []:
                for entry in signature.inputs if signature.subgraphIndex == 0 else []:
                    entry.tensorIndex = raw if entry.tensorIndex == index else entry.tensorIndex
            # QUANTIZE does not read uint8 for an int16 output. With equal steps, a CAST computes the same.
            is_cast = (dtype, inner, scale, zero_point) == ("uint8", "int16", 1.0, 0)
            op = new_op(edited, "CAST", [raw], index) if is_cast else quantize_op(edited, raw, index)
            graph.operators.insert(0, op)
        if not changed:
            return model
        tflite.remove_unused_tensors(edited)  # the outputs of the CAST ops
        return tflite.pack(edited, len(model))


def with_float_inputs(model: bytes, samples: Samples, config: ConversionConfig) -> tuple[bytes, Samples, RawInputs]:
    """Make the integer inputs float32 that the model only casts to float32.

    Args:
        model: A float flatbuffer.
        samples: The calibration samples.
        config: With an `inference_input_type` of float32, nothing is changed.

    Returns:
        The flatbuffer, the samples in the types of its inputs, and what to restore in the result.
    """
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    indices = index_tensors(graph)
    names = dict(zip(graph.inputs, parsed.input_names, strict=True))
    readers = inputs_read_by_casts(
        graph,
        lambda tensor, cast: tensor.dtype in _RAW_TYPES and cast.dtype == "float32" and cast.index not in indices,
    )
    casts = {names[index]: (index, graph.tensors[index].dtype, places) for index, places in readers.items()}
    if not casts or config.inference_input_type == "float32":
        return model, samples, RawInputs()
    edited = tflite.unpack(model)
    main = edited.subgraphs[0]
    removed = [main.operators[place] for _, _, places in casts.values() for place in places]
    for index, _, places in casts.values():
        main.tensors[index].type = _FLOAT32
        for place in places:
            replace_reads(main.operators, int(main.operators[place].outputs[0]), index)
    main.operators = [op for op in main.operators if not any(op is item for item in removed)]
    tflite.remove_unused_operator_codes(edited)
    exact = _EXACT.get(config.scheme, {})
    raw = RawInputs(
        types={index: dtype for index, dtype, _ in casts.values()},
        names=tuple(casts),
        ranges={(graph.index, index): exact[dtype] for index, dtype, _ in casts.values() if dtype in exact},
        restored=not config.inference_input_type,
    )
    converted = [
        {name: array.astype(np.float32) if name in casts else array for name, array in sample.items()}
        for sample in samples
    ]
    return tflite.pack(edited, len(model)), converted, raw


def byte_ranges(model: bytes, samples: Samples, config: ConversionConfig) -> Ranges:
    """Return the range 0 to 255 for each float input that gets raw bytes, if the inputs of the result are uint8.

    An input gets raw bytes if all samples have integers from 0 to 255, and some are above 127. With this range, the
    scale is 1 and the zero point 0, so that the app passes its bytes unchanged.
    """
    if config.scheme != "int8" or config.inference_input_type != "uint8" or not samples:
        return {}
    parsed = tflite.read(model)
    graph, results = parsed.main_subgraph, {}
    for name, index in zip(parsed.input_names, graph.inputs, strict=True):
        arrays = [sample[name] for sample in samples]
        is_float = graph.tensors[index].dtype == "float32"
        if is_float and all(map(_has_bytes, arrays)) and max(array.max() for array in arrays) > 127:
            results[graph.index, index] = (0.0, 255.0)
    return results


def _has_bytes(values: NDArray) -> bool:
    """Check whether all values are integers from 0 to 255."""
    in_range = values.size and values.min() >= 0 and values.max() <= 255
    return bool(in_range) and np.array_equal(values, np.rint(values))
