# SPDX-License-Identifier: Apache-2.0
"""Changes to flatbuffers that we made ourselves, through the schema's generated object API.

It trusts what it reads: bytes from elsewhere go through `read` first. Constants are views of the old file until
they are packed, 16-byte aligned as the schema wants them (the generated Python code forgets that).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.tflite import schema
from tfq.tflite.metadata import METADATA_NAME, decode_metadata, encode_metadata
from tfq.tflite.reader import read
from tfq.tflite.records import Signature

# (subgraph, tensor) -> (minimum, maximum), in real units.
RangeMap = Mapping[tuple[int, int], tuple[float, float]]
# Name -> tensor index, of the inputs and of the outputs.
SignatureNames = tuple[Mapping[str, int], Mapping[str, int]]

_ALIGNMENT = 16
_FLOAT32, _FLOAT32_MAX = schema.TENSOR_TYPES.index("float32"), float(np.finfo(np.float32).max)


def edit_model(
    data: bytes,
    *,
    signature: Signature | SignatureNames | None = None,
    metadata: Mapping[str, Any] | None = None,
    ranges: RangeMap | None = None,
) -> bytes:
    """The flatbuffer `data` with every change that is given, unpacked and packed once.

    signature: as in add_signature; a pair (inputs, outputs) is one for serving_default. metadata: as in write_metadata.
    ranges: as in inject_ranges. The same arguments give the same bytes.
    """
    from ai_edge_litert import schema_py_generated as generated

    model = unpack(data)
    if signature is not None:
        if not isinstance(signature, Signature):
            signature = Signature(inputs=signature[0], outputs=signature[1])
        _set_signature(model, signature, generated)
    if metadata is not None:
        _set_metadata(model, encode_metadata(metadata), generated)
    if ranges is not None:
        _set_ranges(model, ranges, generated)
    return pack(model, len(data))


def unpack(data: bytes) -> Any:
    """The flatbuffer as the generated schema's ModelT, to be changed in place. `data` is trusted."""
    from ai_edge_litert import schema_py_generated as generated

    model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(data))
    if any((buffer.offset or 0) > 1 for buffer in model.buffers or []):
        raise InputError("the flatbuffer keeps data behind itself, as models over 2 GB do: edit a smaller one")
    return model


def pack(model: Any, size: int) -> bytes:
    """The bytes of a ModelT; about `size` of them are expected."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        """Aligns vectors as the schema's force_align does: kernels read constants in place."""

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            self.Prep(_ALIGNMENT, x.nbytes)
            return super().CreateNumpyVector(x)

    # Room for all of it from the start: growing doubles and copies.
    builder = Builder(size + size // 8 + 65536)
    builder.Finish(model.Pack(builder), file_identifier=schema.IDENTIFIER)
    return bytes(builder.Output())


def add_signature(
    data: bytes, inputs: Mapping[str, int], outputs: Mapping[str, int], key: str = "serving_default"
) -> bytes:
    """`data` with a signature `key`, in the place of one of that key if there is one.

    inputs, outputs: name -> tensor index in subgraph 0.
    Raises InputError unless they name its inputs and outputs, each once.
    """
    return edit_model(data, signature=Signature(key=key, inputs=inputs, outputs=outputs))


def write_metadata(data: bytes, value: Mapping[str, Any]) -> bytes:
    """`data` with `value` as tfq's own metadata entry, in the place of what it held before.

    Raises InputError where `value` is not plain, finite JSON.
    """
    return edit_model(data, metadata=value)


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """What tfq wrote into `data` about it, None when there is nothing. `data` may come from anywhere.

    Raises FlatbufferError on damaged bytes, and where the entry is no JSON object.
    """
    span = read(data).metadata.get(METADATA_NAME)
    return None if span is None else decode_metadata(data[span[0] : span[0] + span[1]])


def inject_ranges(data: bytes, ranges: RangeMap) -> bytes:
    """`data` with minimum and maximum written into float32 tensors, where TensorFlow's MLIR quantizer looks for them.

    ranges: (subgraph, tensor) -> (minimum, maximum) in real units; kept as float32.
    Raises InputError on a tensor that is not there or not float32, and on a range that is not finite or is upside down.
    """
    return edit_model(data, ranges=ranges)


def read_ranges(data: bytes) -> dict[tuple[int, int], tuple[float, float]]:
    """(subgraph, tensor) -> (minimum, maximum) of every tensor that holds one such pair, as inject_ranges takes it.

    Tensors with a pair for each channel (weights) are left out. `data` is trusted.
    """
    from ai_edge_litert import schema_py_generated as generated

    model = generated.Model.GetRootAs(data)
    found = {}
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        for tensor in range(graph.TensorsLength()):
            quantization = graph.Tensors(tensor).Quantization()
            if quantization and quantization.MinLength() == quantization.MaxLength() == 1:
                found[index, tensor] = (float(quantization.Min(0)), float(quantization.Max(0)))
    return found


def expose_tensors(data: bytes, tensors: Sequence[int]) -> tuple[bytes, tuple[int, ...]]:
    """(`data` with `tensors` of its main subgraph as further outputs, the tensor indices of all its outputs).

    Inputs do not become outputs. Signatures are left out. What an interpreter gives of a tensor that is no output is
    silently wrong: its memory has been used again by then.
    """
    model = unpack(data)
    graph = model.subgraphs[0]
    outputs = list(map(int, graph.outputs))
    outputs += [index for index in tensors if index not in (*outputs, *map(int, graph.inputs))]
    graph.outputs, model.signatureDefs = outputs, []
    return pack(model, len(data)), tuple(outputs)


def _set_signature(model: Any, signature: Signature, generated: Any) -> None:
    subgraphs = model.subgraphs or []
    if not 0 <= signature.subgraph < len(subgraphs):
        raise InputError(
            f"signature {signature.key!r}: wanted a subgraph below {len(subgraphs)}, got {signature.subgraph}"
        )
    graph = subgraphs[signature.subgraph]
    for place, names, wanted in (
        ("inputs", signature.inputs, graph.inputs),
        ("outputs", signature.outputs, graph.outputs),
    ):
        wanted = [] if wanted is None else [int(index) for index in wanted]
        if sorted(names.values()) != sorted(set(wanted)):
            raise InputError(
                f"signature {signature.key!r}: wanted a name for each of the {place} {wanted} (tensor indices), "
                f"got {dict(names)}"
            )
    made = generated.SignatureDefT()
    made.signatureKey, made.subgraphIndex = signature.key, signature.subgraph
    made.inputs = [_tensor_map(generated, name, index) for name, index in signature.inputs.items()]
    made.outputs = [_tensor_map(generated, name, index) for name, index in signature.outputs.items()]
    others = [old for old in model.signatureDefs or [] if _text(old.signatureKey) != signature.key]
    model.signatureDefs = [*others, made]


def _tensor_map(generated: Any, name: str, index: int) -> Any:
    entry = generated.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def _set_metadata(model: Any, content: bytes, generated: Any) -> None:
    values = np.frombuffer(content, np.uint8)
    model.metadata = model.metadata or []
    for entry in model.metadata:
        if _text(entry.name) == METADATA_NAME:
            model.buffers[entry.buffer].data = values
            return
    entry = generated.MetadataT()
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    buffer = generated.BufferT()
    buffer.data = values
    model.buffers.append(buffer)
    model.metadata.append(entry)


def _set_ranges(model: Any, ranges: RangeMap, generated: Any) -> None:
    for (index, number), (minimum, maximum) in ranges.items():
        where = f"range of tensor {number} of subgraph {index}"
        tensors = model.subgraphs[index].tensors if 0 <= index < len(model.subgraphs) else []
        if not 0 <= number < len(tensors) or tensors[number].type != _FLOAT32:
            raise InputError(f"{where}: wanted a float32 tensor that the model has")
        if not -_FLOAT32_MAX <= minimum <= maximum <= _FLOAT32_MAX:
            raise InputError(f"{where}: wanted finite minimum <= maximum, got [{minimum}, {maximum}]")
        quantization = tensors[number].quantization or generated.QuantizationParametersT()
        quantization.min, quantization.max = [float(minimum)], [float(maximum)]
        tensors[number].quantization = quantization


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""
