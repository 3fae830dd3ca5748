# SPDX-License-Identifier: Apache-2.0
"""Edit flatbuffers through the generated object API of the schema: unpack, change, pack.

The functions trust their bytes: untrusted bytes must go through `read` first. Constants are views of the original file
until they are packed. They are packed with the 16-byte alignment that the schema requires (the generated Python code
does not apply it).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.tflite import schema
from tfq.tflite.associated_files import with_associated_files
from tfq.tflite.binary import decoding
from tfq.tflite.metadata import METADATA_NAME, decode_metadata, encode_metadata
from tfq.tflite.reader import read
from tfq.tflite.records import ABSENT, Signature
from tfq.tflite.schema import OPERATORS


def operator_code(model: Any, builtin: int, version: int) -> int:
    """Return the index of an operator code in the model, after adding it if it is missing."""
    from ai_edge_litert import schema_py_generated as generated

    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
            return index
    code = generated.OperatorCodeT()
    # 127 in the deprecated field means that the number does not fit there.
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def operator_name(model: Any, op: Any) -> str:
    """Return the op's name in the schema; empty if its operator code is newer than this schema."""
    code = model.operatorCodes[op.opcodeIndex]
    return _name(code.builtinCode, code.deprecatedBuiltinCode)


def operator_names(data: bytes) -> frozenset[str]:
    """Return the names of the operators that the flatbuffer lists, without reading anything else; `data` is trusted."""
    from ai_edge_litert import schema_py_generated as generated

    model = generated.Model.GetRootAs(data)
    operator_codes = (model.OperatorCodes(index) for index in range(model.OperatorCodesLength()))
    return frozenset(_name(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in operator_codes)


def _name(builtin: int, deprecated: int) -> str:
    number = max(builtin, deprecated)  # old files have it only in the second field
    return OPERATORS[number] if number < len(OPERATORS) else ""


def remove_unused_operator_codes(model: Any) -> None:
    """Remove the operator codes that no op uses, in place, because interpreters need a kernel for each of them."""
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for graph in model.subgraphs:
        for op in graph.operators:
            op.opcodeIndex = used.index(op.opcodeIndex)


def remove_min_runtime_version(model: Any) -> bool:
    """Remove the minimum runtime version, in place; return whether there was one.

    TensorFlow computes it from the op versions, so it is wrong after they have changed.
    """
    entries = model.metadata or []
    model.metadata = [entry for entry in entries if entry.name != b"min_runtime_version"]
    return len(model.metadata) != len(entries)


def remove_unused_constants(model: Any) -> None:
    """Empty the buffers that no tensor and no metadata entry uses, in place."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def remove_unused_tensors(model: Any) -> None:
    """Remove the tensors that no op, input or output uses, in place; the tensors after them get new indices."""
    for index, graph in enumerate(model.subgraphs):
        named = [graph.inputs, graph.outputs]
        for op in graph.operators:
            named += [op.inputs, op.outputs, op.intermediates]
        used = sorted({int(number) for numbers in named for number in _numbers(numbers)} - {ABSENT})
        place = {number: new for new, number in enumerate(used)} | {ABSENT: ABSENT}
        graph.tensors = [graph.tensors[number] for number in used]
        for holder in (graph, *graph.operators):
            holder.inputs, holder.outputs = _moved(holder.inputs, place), _moved(holder.outputs, place)
        for op in graph.operators:
            if op.intermediates is not None:
                op.intermediates = _moved(op.intermediates, place)
        for signature in model.signatureDefs or []:
            if signature.subgraphIndex == index:
                for entry in (*_numbers(signature.inputs), *_numbers(signature.outputs)):
                    entry.tensorIndex = place[entry.tensorIndex]


def _numbers(numbers: Any) -> Any:
    """Return a vector of a ModelT, which is None if the file does not have it."""
    return () if numbers is None else numbers


def _moved(numbers: Any, place: dict[int, int]) -> Any:
    return np.array([place[int(number)] for number in _numbers(numbers)], np.int32)


# (subgraph, tensor) -> (minimum, maximum), in real units.
RangeMap = Mapping[tuple[int, int], tuple[float, float]]
# Name -> tensor index, for the inputs and for the outputs.
SignatureNames = tuple[Mapping[str, int], Mapping[str, int]]

# The alignment of constants, in bytes.
ALIGNMENT = 16
_MOST_BYTES = 2**31 - 1
_FLOAT32, _FLOAT32_MAX = schema.TENSOR_TYPES.index("float32"), float(np.finfo(np.float32).max)


def edit_model(
    data: bytes,
    *,
    signature: Signature | SignatureNames | None = None,
    metadata: Mapping[str, Any] | None = None,
    ranges: RangeMap | None = None,
    entries: Mapping[str, bytes] | None = None,
    keep_files: bool = True,
) -> bytes:
    """Return the flatbuffer `data` with several changes, unpacked and packed only once.

    The same arguments give the same bytes.

    Args:
        data: The flatbuffer.
        signature: As in `add_signature`; a pair (inputs, outputs) is a signature `serving_default`.
        metadata: As in `write_metadata`.
        ranges: As in `inject_ranges`.
        entries: Name -> content of metadata entries, which replace existing ones.
        keep_files: Whether the result has the files after the flatbuffer, such as labels, that `data` has.
    """
    from ai_edge_litert import schema_py_generated as generated

    model = unpack(data)
    if signature is not None:
        if not isinstance(signature, Signature):
            signature = Signature(inputs=signature[0], outputs=signature[1])
        _set_signature(model, signature, generated)
    if metadata is not None:
        _set_metadata(model, METADATA_NAME, encode_metadata(metadata), generated)
    for name, content in (entries or {}).items():
        _set_metadata(model, name, content, generated)
    if ranges is not None:
        _set_ranges(model, ranges, generated)
    result = pack(model, len(data))
    return with_associated_files(result, data)[0] if keep_files else result


def unpack(data: bytes) -> Any:
    """Return the flatbuffer as a ModelT of the generated schema, which can be changed in place.

    Raises:
        FlatbufferError: A part of the file is damaged that `tflite.read` does not need, so it was not checked.
    """
    from ai_edge_litert import schema_py_generated as generated

    with decoding():
        model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(data))
        _move_inside(model, data)
    normalize_operator_codes(model)
    return model


def _move_inside(model: Any, data: bytes) -> None:
    """Let the model own the constants and custom options that the file stores after the flatbuffer, in place.

    Writers of models above 2 GB, and some of smaller ones, store them there.
    """
    for buffer in model.buffers or []:
        if (buffer.offset or 0) > 1:  # 0 and 1 are placeholders
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    for graph in model.subgraphs or []:
        for op in graph.operators or []:
            if (op.largeCustomOptionsOffset or 0) > 1:
                op.customOptions = np.frombuffer(data, np.uint8, op.largeCustomOptionsSize, op.largeCustomOptionsOffset)
            op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0


def normalize_operator_codes(model: Any) -> None:
    """Write each operator's code into both fields of the schema, in place.

    Files of schema version 3 (before 3a), such as MediaPipe's, have it only in `deprecated_builtin_code`. Interpreters
    use the larger of both fields, but litert-quantizer reads `builtin_code`, where a missing code means ADD.
    """
    for code in model.operatorCodes or []:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)


def pack(model: Any, size: int) -> bytes:
    """Return the bytes of a ModelT; `size` is an estimate of their number."""
    # Allocate everything at once: growing doubles the buffer and copies it.
    return finished(new_builder(min(size + size // 8 + 65536, _MOST_BYTES)), model)


def new_builder(size: int) -> Any:
    """Return a builder that aligns vectors like the schema's force_align, because kernels read constants in place."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x: np.ndarray) -> int:
            self.Prep(ALIGNMENT, x.nbytes)
            return super().CreateNumpyVector(x)

    return Builder(size)


def finished(builder: Any, model: Any) -> bytes:
    """Return the bytes that a new builder packs a ModelT to."""
    import flatbuffers

    try:
        builder.Finish(model.Pack(builder), file_identifier=schema.IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError as error:
        raise InputError(
            f"the model needs more than {_MOST_BYTES:,} bytes, which is the most that a flatbuffer can have. Pass a "
            "smaller model",
            field="model",
            expected=_MOST_BYTES,
            limit="large-files",
        ) from error
    return bytes(builder.Output())


def add_signature(
    data: bytes, inputs: Mapping[str, int], outputs: Mapping[str, int], key: str = "serving_default"
) -> bytes:
    """Return `data` with a signature `key`, which replaces one with the same key.

    Args:
        data: The flatbuffer.
        inputs: Name -> tensor index in subgraph 0, for each input once.
        outputs: The same for the outputs.
        key: The name of the signature.

    Raises:
        InputError: The names do not cover each input and output exactly once.
    """
    return edit_model(data, signature=Signature(key=key, inputs=inputs, outputs=outputs))


def write_metadata(data: bytes, value: Mapping[str, Any]) -> bytes:
    """Return `data` with `value` as tfq's metadata entry, which replaces an existing one.

    Raises:
        InputError: `value` is not plain, finite JSON.
    """
    return edit_model(data, metadata=value)


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """Return tfq's metadata entry in `data`, or None if there is none; `data` may be untrusted.

    Raises:
        FlatbufferError: The bytes are damaged, or the entry is not a JSON object.
    """
    span = read(data).metadata.get(METADATA_NAME)
    return None if span is None else decode_metadata(data[span[0] : span[0] + span[1]])


def inject_ranges(data: bytes, ranges: RangeMap) -> bytes:
    """Write minimum and maximum into float32 tensors, where TensorFlow's MLIR quantizer reads them.

    Args:
        data: The flatbuffer.
        ranges: (subgraph, tensor) -> (minimum, maximum) in real units, stored as float32.

    Raises:
        InputError: A tensor does not exist or is not float32, or a range is not finite or has minimum > maximum.
    """
    return edit_model(data, ranges=ranges)


def read_ranges(data: bytes) -> dict[tuple[int, int], tuple[float, float]]:
    """Return {(subgraph, tensor): (minimum, maximum)} of the tensors with one pair, in the form of `inject_ranges`.

    Tensors with a pair per channel (weights) are left out. `data` is trusted.
    """
    from ai_edge_litert import schema_py_generated as generated

    model = generated.Model.GetRootAs(data)
    results = {}
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        for tensor in range(graph.TensorsLength()):
            quantization = graph.Tensors(tensor).Quantization()
            if quantization and quantization.MinLength() == quantization.MaxLength() == 1:
                results[index, tensor] = (float(quantization.Min(0)), float(quantization.Max(0)))
    return results


def cut_after(data: bytes, last: int) -> bytes:
    """Return `data` without the ops of subgraph 0 after op number `last`, whose outputs become the model's outputs.

    Signatures are removed. Ops that only other subgraphs run are kept.
    """
    model = unpack(data)
    graph = model.subgraphs[0]
    graph.operators = graph.operators[: last + 1]
    graph.outputs, model.signatureDefs = list(map(int, graph.operators[-1].outputs)), []
    remove_unused_operator_codes(model)
    return pack(model, len(data))


def _set_signature(model: Any, signature: Signature, generated: Any) -> None:
    subgraphs = model.subgraphs or []
    if not 0 <= signature.subgraph < len(subgraphs):
        raise InputError(
            f"signature {signature.key!r}: expected a subgraph below {len(subgraphs)}, got {signature.subgraph}",
            field="signature",
            expected=range(len(subgraphs)),
            got=signature.subgraph,
        )
    graph = subgraphs[signature.subgraph]
    for place, names, tensors in (
        ("inputs", signature.inputs, graph.inputs),
        ("outputs", signature.outputs, graph.outputs),
    ):
        expected = [] if tensors is None else [int(index) for index in tensors]
        if sorted(names.values()) != sorted(set(expected)):
            raise InputError(
                f"signature {signature.key!r}: expected a name for each of the {place} {expected} (tensor indices), "
                f"got {dict(names)}",
                field=f"signature.{place}",
                expected=expected,
                got=dict(names),
            )
    built = generated.SignatureDefT()
    built.signatureKey, built.subgraphIndex = signature.key, signature.subgraph
    built.inputs = [_tensor_map(generated, name, index) for name, index in signature.inputs.items()]
    built.outputs = [_tensor_map(generated, name, index) for name, index in signature.outputs.items()]
    others = [old for old in model.signatureDefs or [] if _text(old.signatureKey) != signature.key]
    model.signatureDefs = [*others, built]


def _tensor_map(generated: Any, name: str, index: int) -> Any:
    entry = generated.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def _set_metadata(model: Any, name: str, content: bytes, generated: Any) -> None:
    values = np.frombuffer(content, np.uint8)
    model.metadata, model.buffers = model.metadata or [], model.buffers or [generated.BufferT()]
    places = [entry.buffer for entry in model.metadata if _text(entry.name) == name]
    for place in places:
        model.buffers[place].data = values
    if places:
        return
    entry = generated.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    buffer = generated.BufferT()
    buffer.data = values
    model.buffers.append(buffer)
    model.metadata.append(entry)


def _set_ranges(model: Any, ranges: RangeMap, generated: Any) -> None:
    for (index, number), (minimum, maximum) in ranges.items():
        where = f"range of tensor {number} of subgraph {index}"
        tensors = model.subgraphs[index].tensors if 0 <= index < len(model.subgraphs) else []
        if not 0 <= number < len(tensors) or tensors[number].type != _FLOAT32:
            raise InputError(
                f"{where}: expected an existing float32 tensor",
                field="ranges",
                expected="a float32 tensor",
                got=(index, number),
            )
        if not -_FLOAT32_MAX <= minimum <= maximum <= _FLOAT32_MAX:
            raise InputError(
                f"{where}: expected finite minimum <= maximum, got [{minimum}, {maximum}]",
                field="ranges",
                expected="finite minimum <= maximum",
                got=(minimum, maximum),
            )
        quantization = tensors[number].quantization or generated.QuantizationParametersT()
        quantization.min, quantization.max = [float(minimum)], [float(maximum)]
        tensors[number].quantization = quantization


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""
