# SPDX-License-Identifier: Apache-2.0
"""Parse untrusted TFLite bytes into a `Model` in which all indices are valid."""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence

from tfq.errors import FlatbufferError
from tfq.tflite import schema
from tfq.tflite.binary import DAMAGED, Reader, Table
from tfq.tflite.layer_names import LayerNames
from tfq.tflite.metadata import METADATA_NAME, decode_metadata
from tfq.tflite.op_types import SAME_SCALE_OPS
from tfq.tflite.op_types import names as op_names
from tfq.tflite.records import ABSENT, Model, Op, Signature, Subgraph, Tensor
from tfq.tflite.schema import (
    BufferSlot,
    MetadataSlot,
    ModelSlot,
    OperatorCodeSlot,
    OperatorSlot,
    QuantizationSlot,
    SignatureSlot,
    SubgraphSlot,
    TensorMapSlot,
    TensorSlot,
)

# (offset, size) of a buffer in the file.
_Span = tuple[int, int]

_LARGEST_SHAPE = 2**62

# Ops that always have a first input and an output. Many passes follow a tensor from one to the other.
_MOVE_OR_CONVERT = SAME_SCALE_OPS | op_names("CAST DEQUANTIZE QUANTIZE")


# The last flatbuffers that were parsed, and their records. Most steps of a conversion parse the same file again.
_recent: tuple[tuple[bytes, Model], ...] = ()
_MOST_RECENT, _MOST_RECENT_BYTES = 4, 8 << 20
# The same limit in blocks that keep large files, and the number of these blocks.
_MOST_LARGE_BYTES, _num_keeping = 256 << 20, 0


@contextlib.contextmanager
def keeping_large_files() -> Iterator[None]:
    """Let `read` remember the last few files of up to 256 MB until the block ends. Until then they stay in memory."""
    global _num_keeping, _recent
    _num_keeping += 1
    try:
        yield
    finally:
        _num_keeping -= 1
        if not _num_keeping:
            _recent = tuple(entry for entry in _recent if len(entry[0]) <= _MOST_RECENT_BYTES)


def read(data: bytes) -> Model:
    """Parse the flatbuffer `data` into records. Constants are not copied.

    Layer names come from the list that tfq writes into a file, otherwise from the form of the tensor names. Time and
    memory are proportional to the size of the file, whatever it contains. The records of the last few bytes objects are
    kept, and returned again for the same object; those of more than 8 MB only within `keeping_large_files`.

    Raises:
        FlatbufferError: The bytes are malformed in any way.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise FlatbufferError(
            f"model: expected the bytes of a .tflite file, got {type(data).__name__}: read a path with "
            "Path(path).read_bytes(), and convert a Keras model with tfq.convert(model, representative_dataset)",
            field="model",
            expected="bytes",
            got=type(data).__name__,
        )
    global _recent
    for entry in _recent:
        if entry[0] is data:
            _recent = (entry, *(other for other in _recent if other is not entry))
            return entry[1]
    result = _read(bytes(data))
    if isinstance(data, bytes) and len(data) <= (_MOST_LARGE_BYTES if _num_keeping else _MOST_RECENT_BYTES):
        _recent = ((data, result), *_recent[: _MOST_RECENT - 1])
    return result


def _read(data: bytes) -> Model:
    reader = Reader(data, schema.IDENTIFIER)
    root = reader.root("model")
    version = root.u32(ModelSlot.VERSION, "version")
    if version != schema.VERSION:
        _fail("model: version", f"{schema.VERSION}", version)
    buffers = [_read_buffer(table, len(data)) for table in root.tables(ModelSlot.BUFFERS, "buffers", "buffer")]
    operator_codes = [
        _read_code(table) for table in root.tables(ModelSlot.OPERATOR_CODES, "operator codes", "operator code")
    ]
    metadata = dict(
        _read_metadata_entry(table, buffers) for table in root.tables(ModelSlot.METADATA, "metadata", "metadata entry")
    )
    layers = _listed_layers(data, metadata.get(METADATA_NAME))
    subgraphs = tuple(
        _read_subgraph(table, index, operator_codes, buffers, layers, len(data))
        for index, table in enumerate(root.tables(ModelSlot.SUBGRAPHS, "subgraphs", "subgraph"))
    )
    if not subgraphs:
        _fail("model: subgraphs", "at least one", "none")
    signatures = root.tables(ModelSlot.SIGNATURES, "signatures", "signature")
    return Model(
        version=version,
        description=root.text(ModelSlot.DESCRIPTION, "description"),
        subgraphs=subgraphs,
        signatures=tuple(_read_signature(table, subgraphs) for table in signatures),
        metadata=metadata,
        buffer_bytes=sum(size for _, size in buffers),
        model_bytes=len(data),
    )


def _fail(where: str, expected: str, got: object) -> None:
    message = f"{where}: expected {expected}, got {got}: {DAMAGED}"
    raise FlatbufferError(message, field=where, expected=expected, got=got)


def _check_indices(where: str, indices: Sequence[int], count: int, lowest: int = 0) -> tuple[int, ...]:
    if indices and not (min(indices) >= lowest and max(indices) < count):
        wrong = next(index for index in indices if not lowest <= index < count)
        _fail(where, f"indices from {lowest} to {count - 1}", wrong)
    return tuple(indices)


def _read_buffer(table: Table, file_bytes: int) -> _Span:
    return _outside(table, BufferSlot.OFFSET, BufferSlot.SIZE, file_bytes) or table.span(BufferSlot.DATA, "data")


def _outside(table: Table, offset_slot: int, size_slot: int, file_bytes: int) -> _Span | None:
    """Return where data outside the flatbuffer is, or None if the table has none."""
    offset, size = table.u64(offset_slot, "offset"), table.u64(size_slot, "size")
    if offset <= 1:  # 0 and 1 are placeholders of the writer for data inside the flatbuffer
        return None
    if offset + size > file_bytes:
        _fail(f"{table.where}: data outside the flatbuffer", f"an end before byte {file_bytes}", offset + size)
    return offset, size


def _read_code(table: Table) -> tuple[str, str, int]:
    """Return (name, custom code, version)."""
    deprecated = table.i8(OperatorCodeSlot.DEPRECATED_BUILTIN_CODE, "deprecated_builtin_code")
    code = max(deprecated, table.i32(OperatorCodeSlot.BUILTIN_CODE, "builtin_code"))
    name = schema.OPERATORS[code] if 0 <= code < len(schema.OPERATORS) else f"UNKNOWN_{code}"
    custom = table.text(OperatorCodeSlot.CUSTOM_CODE, "custom_code") if code == schema.CUSTOM else ""
    return name, custom, table.i32(OperatorCodeSlot.VERSION, "version", default=1)


def _read_metadata_entry(table: Table, buffers: Sequence[_Span]) -> tuple[str, _Span]:
    index = table.u32(MetadataSlot.BUFFER, "buffer")
    _check_indices(f"{table.where}: buffer", [index], len(buffers))
    return table.text(MetadataSlot.NAME, "name"), buffers[index]


def _listed_layers(data: bytes, span: _Span | None) -> Collection[str] | None:
    """Return the layer names that tfq wrote into the file, or None if there are none or they cannot be read."""
    if span is None:
        return None
    try:
        layers = decode_metadata(data[span[0] : span[0] + span[1]]).get("keras_layers")
    except FlatbufferError:
        return None
    return [layer for layer in layers if isinstance(layer, str)] if isinstance(layers, list) else None


def _read_subgraph(
    table: Table,
    index: int,
    operator_codes: Sequence[tuple[str, str, int]],
    buffers: Sequence[_Span],
    layers: Collection[str] | None,
    file_bytes: int,
) -> Subgraph:
    where = table.where
    tensors = tuple(
        _read_tensor(item, number, buffers)
        for number, item in enumerate(table.tables(SubgraphSlot.TENSORS, "tensors", f"{where}, tensor"))
    )
    names = LayerNames(tensors, layers)
    ops = tuple(
        _read_op(item, number, operator_codes, len(tensors), names, file_bytes)
        for number, item in enumerate(table.tables(SubgraphSlot.OPERATORS, "operators", f"{where}, op"))
    )
    _check_order(where, ops)
    inputs = table.numbers(SubgraphSlot.INPUTS, "i", "inputs")
    outputs = table.numbers(SubgraphSlot.OUTPUTS, "i", "outputs")
    return Subgraph(
        index=index,
        name=table.text(SubgraphSlot.NAME, "name"),
        tensors=tensors,
        ops=ops,
        inputs=_check_indices(f"{where}: inputs", inputs, len(tensors)),
        outputs=_check_indices(f"{where}: outputs", outputs, len(tensors)),
    )


def _check_order(where: str, ops: Sequence[Op]) -> None:
    """Refuse an op that reads a tensor before an op writes it: following the tensors of a cycle would never end."""
    writers = {output: op.index for op in reversed(ops) for output in op.outputs}
    for op in ops:
        for tensor in op.inputs:
            if writers.get(tensor, ABSENT) >= op.index:
                _fail(f"{where}, op {op.index}: inputs", "tensors that are written before they are read", tensor)


def _read_op(
    table: Table,
    index: int,
    operator_codes: Sequence[tuple[str, str, int]],
    tensors: int,
    names: LayerNames,
    file_bytes: int,
) -> Op:
    where = table.where
    code = table.u32(OperatorSlot.OPCODE_INDEX, "opcode_index")
    _check_indices(f"{where}: opcode_index", [code], len(operator_codes))
    name, custom_code, version = operator_codes[code]
    # Their content is not read, but they must lie within the file.
    table.table(OperatorSlot.BUILTIN_OPTIONS, "builtin_options")
    table.table(OperatorSlot.BUILTIN_OPTIONS_2, "builtin_options_2")
    table.span(OperatorSlot.CUSTOM_OPTIONS, "custom_options")
    _outside(table, OperatorSlot.LARGE_CUSTOM_OPTIONS_OFFSET, OperatorSlot.LARGE_CUSTOM_OPTIONS_SIZE, file_bytes)
    inputs = table.numbers(OperatorSlot.INPUTS, "i", "inputs")
    outputs = table.numbers(OperatorSlot.OUTPUTS, "i", "outputs")
    _check_indices(f"{where}: inputs", inputs, tensors, ABSENT)
    _check_indices(f"{where}: outputs", outputs, tensors)
    if name in _MOVE_OR_CONVERT:
        if not inputs or inputs[0] == ABSENT:
            _fail(f"{where}: inputs", f"a tensor that {name} reads", "none")
        if not outputs:
            _fail(f"{where}: outputs", f"a tensor that {name} writes", "none")
    return Op(
        index=index,
        name=name,
        version=version,
        custom_code=custom_code,
        inputs=inputs,
        outputs=outputs,
        keras_layer=names.layer(name, inputs, outputs),
        intermediates=_check_indices(
            f"{where}: intermediates", table.numbers(OperatorSlot.INTERMEDIATES, "i", "intermediates"), tensors, ABSENT
        ),
    )


def _read_tensor(table: Table, index: int, buffers: Sequence[_Span]) -> Tensor:
    where = table.where
    shape = table.numbers(TensorSlot.SHAPE, "i", "shape")
    if shape and (min(shape) < 0 or math.prod(shape[:64]) >= _LARGEST_SHAPE or len(shape) > 64):
        _fail(f"{where}: shape", "at most 64 dimensions from 0 on, their product below 2**62", shape[:64])
    signature = table.numbers(TensorSlot.SHAPE_SIGNATURE, "i", "shape_signature") or shape
    if len(signature) != len(shape) or min(signature, default=0) < -1:
        _fail(f"{where}: shape_signature", f"{len(shape)} dimensions from -1 on", signature[:64])
    kind = table.i8(TensorSlot.TYPE, "type")
    if not 0 <= kind < len(schema.TENSOR_TYPES):
        _fail(f"{where}: type", f"a type from 0 to {len(schema.TENSOR_TYPES) - 1}", kind)
    if table.u32(TensorSlot.EXTERNAL_BUFFER, "external_buffer"):
        raise FlatbufferError(
            f"{where}: expected its data in this file, got a reference to another file: export the model as one file",
            limit="external-data",
        )
    buffer = table.u32(TensorSlot.BUFFER, "buffer")
    # A file without constants may have no buffers.
    _check_indices(f"{where}: buffer", [buffer], max(1, len(buffers)))
    offset, size = buffers[buffer] if buffer else (0, 0)
    is_variable = table.flag(TensorSlot.IS_VARIABLE, "is_variable")
    scale, zero_point, dimension = _read_quantization(table, shape)
    return Tensor(
        index=index,
        name=table.text(TensorSlot.NAME, "name"),
        shape=shape,
        shape_signature=signature,
        dtype=schema.TENSOR_TYPES[kind],
        scale=scale,
        zero_point=zero_point,
        quantized_dimension=dimension,
        is_constant=size > 0 and not is_variable,
        is_variable=is_variable,
        is_sparse=table.table(TensorSlot.SPARSITY, "sparsity") is not None,
        buffer_offset=offset,
        buffer_bytes=size,
    )


def _read_quantization(tensor: Table, shape: Sequence[int]) -> tuple[tuple[float, ...], tuple[int, ...], int]:
    """Return (scale, zero_point, quantized_dimension), checked as the interpreter checks them."""
    table = tensor.table(TensorSlot.QUANTIZATION, "quantization")
    if table is None:
        return (), (), 0
    scale = table.numbers(QuantizationSlot.SCALE, "f", "scale")
    zero_point = table.numbers(QuantizationSlot.ZERO_POINT, "q", "zero_point")
    dimension = table.i32(QuantizationSlot.QUANTIZED_DIMENSION, "quantized_dimension")
    if not scale:
        return (), (), 0
    if len(zero_point) != len(scale):
        _fail(f"{table.where}: zero_point", f"as many values as there are scales, {len(scale)}", len(zero_point))
    if max(map(abs, zero_point)) >= 1 << 31:
        _fail(f"{table.where}: zero_point", "32-bit integers, as the interpreter uses", max(zero_point, key=abs))
    if len(scale) > 1:
        if not 0 <= dimension < len(shape):
            _fail(f"{table.where}: quantized_dimension", f"a dimension of the shape {shape}", dimension)
        if len(scale) != shape[dimension]:
            _fail(f"{table.where}: scale", f"1 or {shape[dimension]} values, shape[{dimension}]", len(scale))
    return scale, zero_point, dimension


def _read_signature(table: Table, subgraphs: Sequence[Subgraph]) -> Signature:
    where = table.where
    index = table.u32(SignatureSlot.SUBGRAPH, "subgraph_index")
    _check_indices(f"{where}: subgraph_index", [index], len(subgraphs))
    count = len(subgraphs[index].tensors)

    def tensor_map(slot: SignatureSlot, name: str) -> dict[str, int]:
        entries = {}
        for item in table.tables(slot, name, f"{where}, {name}"):
            tensor = item.u32(TensorMapSlot.TENSOR, "tensor_index")
            _check_indices(f"{item.where}: tensor_index", [tensor], count)
            entries[item.text(TensorMapSlot.NAME, "name")] = tensor
        return entries

    return Signature(
        key=table.text(SignatureSlot.KEY, "signature_key"),
        subgraph=index,
        inputs=tensor_map(SignatureSlot.INPUTS, "inputs"),
        outputs=tensor_map(SignatureSlot.OUTPUTS, "outputs"),
    )
