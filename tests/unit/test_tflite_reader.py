# SPDX-License-Identifier: Apache-2.0
"""The bounds-checked reader, compared with the generated object API and run on damaged files."""

import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from golden_models import NAMES, changed, golden, unpacked
from messages import refused

from tfq.errors import FlatbufferError, InputError
from tfq.tflite import binary, constant_values, keeping_large_files, read, reader, schema


def _public(cls: type) -> dict[str, int]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


def _listed(values) -> list:
    return [] if values is None else [int(value) for value in values]


def test_operator_table_equals_the_generated_schema():
    assert {name: code for code, name in enumerate(schema.OPERATORS)} == _public(generated.BuiltinOperator)


def test_tensor_type_table_equals_the_generated_schema():
    assert {name.upper(): code for code, name in enumerate(schema.TENSOR_TYPES)} == _public(generated.TensorType)


def test_records_are_kept_for_one_object_only():
    name = NAMES[0]
    data, same_bytes = golden(name), bytes(bytearray(golden(name)))
    first = read(data)
    assert read(data) is first
    assert read(same_bytes) is not first and read(same_bytes) == first
    for other in NAMES[1:5]:
        read(bytes(bytearray(golden(other))))
    assert read(data) is not first


def test_records_of_large_files_are_kept_within_a_block_only(monkeypatch):
    monkeypatch.setattr(reader, "_MOST_RECENT_BYTES", 1000)
    data = golden("digits_int8")
    assert read(data) is not read(data)
    with keeping_large_files():
        kept = read(data)
        with keeping_large_files():
            assert read(data) is kept
        assert read(data) is kept
        assert read(bytes(bytearray(data))) is not kept
    assert read(data) is not kept


def test_changed_buffers_are_parsed_again():
    data = bytearray(golden(NAMES[0]))
    read(data)
    data[:] = bytes(len(data))
    with pytest.raises(FlatbufferError):
        read(data)


@pytest.mark.parametrize("name", NAMES)
def test_records_equal_what_the_generated_api_reads(name):
    data = golden(name)
    ours, theirs = read(data), unpacked(data)
    assert (ours.version, ours.description) == (theirs.version, theirs.description.decode())
    assert ours.metadata_names == tuple(entry.name.decode() for entry in theirs.metadata)
    assert len(ours.subgraphs) == len(theirs.subgraphs)
    for graph, other in zip(ours.subgraphs, theirs.subgraphs, strict=True):
        assert list(graph.inputs) == _listed(other.inputs)
        assert list(graph.outputs) == _listed(other.outputs)
        assert len(graph.tensors) == len(other.tensors)
        assert len(graph.ops) == len(other.operators)
        for op, their_op in zip(graph.ops, other.operators, strict=True):
            code = theirs.operatorCodes[their_op.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            assert _public(generated.BuiltinOperator)[op.name] == number
            assert op.custom_code == (code.customCode or b"").decode()
            assert op.version == code.version
            assert list(op.inputs) == _listed(their_op.inputs)
            assert list(op.outputs) == _listed(their_op.outputs)
            assert list(op.intermediates) == _listed(their_op.intermediates)
        for tensor, their_tensor in zip(graph.tensors, other.tensors, strict=True):
            _assert_same_tensor(tensor, their_tensor, theirs.buffers, data)
    for signature, other in zip(ours.signatures, theirs.signatureDefs or [], strict=True):
        assert (signature.key, signature.subgraph) == (other.signatureKey.decode(), other.subgraphIndex)
        assert dict(signature.inputs) == {entry.name.decode(): entry.tensorIndex for entry in other.inputs}
        assert dict(signature.outputs) == {entry.name.decode(): entry.tensorIndex for entry in other.outputs}


def _assert_same_tensor(tensor, other, buffers, data):
    assert tensor.name == other.name.decode()
    assert list(tensor.shape) == _listed(other.shape)
    assert list(tensor.shape_signature) == (_listed(other.shapeSignature) or _listed(other.shape))
    assert _public(generated.TensorType)[tensor.dtype.upper()] == other.type
    quantization = other.quantization
    scale = [] if quantization is None or quantization.scale is None else list(quantization.scale)
    assert list(tensor.scale) == scale
    if scale:
        assert list(tensor.zero_point) == _listed(quantization.zeroPoint)
        assert tensor.quantized_dimension == quantization.quantizedDimension
    content = buffers[other.buffer].data
    size = 0 if content is None else len(content)
    assert tensor.buffer_bytes == size
    assert tensor.is_constant == (size > 0)
    if size:
        result = data[tensor.buffer_offset : tensor.buffer_offset + size]
        assert result == np.asarray(content, np.uint8).tobytes()


def test_a_truncated_file_is_an_error_unless_only_padding_is_lost():
    data = golden("argmax_int8")
    whole = read(data)
    for length in range(len(data)):
        try:
            cut = read(data[:length])
        except FlatbufferError:
            continue
        assert cut.subgraphs == whole.subgraphs
        assert len(data) - length < 8


@pytest.mark.parametrize(
    ("content", "expected", "got"),
    [
        (b"", "a .tflite file", 0),
        (b"TFL3", "a .tflite file", 4),
        ("model.tflite", "bytes", "str"),
        (object(), "bytes", "object"),
        (b"This is a text that somebody called model.tflite.", b"TFL3", b" is "),
        (b"PK\x03\x04" + bytes(100), b"TFL3", bytes(4)),
        (bytes(4) + b"TFL3", "an offset between 4 and 4", 0),
        (b"\xff\xff\xff\xffTFL3" + bytes(64), "an offset between 4 and 68", 2**32 - 1),
        (b"\x08\x00\x00\x00TFL3" + bytes(64), "an even vtable size from 4 to 64", 0),
    ],
)
def test_bytes_that_are_not_a_model_are_refused(content, expected, got):
    with refused(FlatbufferError, field="model", expected=expected, got=got):
        read(content)


def _break_op_input(model):
    op = model.subgraphs[0].operators[1]
    op.inputs = [10_000, *op.inputs[1:]]


def _break_op_output(model):
    model.subgraphs[0].operators[1].outputs = [-1]


def _break_opcode(model):
    model.subgraphs[0].operators[1].opcodeIndex = 99


def _break_buffer(model):
    model.subgraphs[0].tensors[2].buffer = 10_000


def _break_graph_input(model):
    model.subgraphs[0].inputs = [-1]


def _break_signature(model):
    model.signatureDefs[0].subgraphIndex = 5


def _break_signature_tensor(model):
    model.signatureDefs[0].inputs[0].tensorIndex = 10_000


def _break_shape(model):
    model.subgraphs[0].tensors[2].shape = [-3]


def _break_shape_product(model):
    model.subgraphs[0].tensors[2].shape = [2**31 - 1] * 3


def _break_type(model):
    model.subgraphs[0].tensors[2].type = 99


def _break_scale_count(model):
    model.subgraphs[0].tensors[0].quantization.scale = [1.0] * 3
    model.subgraphs[0].tensors[0].quantization.zeroPoint = [0] * 3


def _break_zero_point(model):
    model.subgraphs[0].tensors[0].quantization.zeroPoint = [-(1 << 52)]


def _break_zero_point_count(model):
    model.subgraphs[0].tensors[0].quantization.zeroPoint = [0, 0]


def _break_version(model):
    model.version = 2


def _break_subgraphs(model):
    model.subgraphs = []
    model.signatureDefs = []


@pytest.mark.parametrize(
    ("change", "field", "got"),
    [
        (_break_op_input, "subgraph 0, op 1: inputs", 10_000),
        (_break_op_output, "subgraph 0, op 1: outputs", -1),
        (_break_opcode, "subgraph 0, op 1: opcode_index", 99),
        (_break_buffer, "subgraph 0, tensor 2: buffer", 10_000),
        (_break_graph_input, "subgraph 0: inputs", -1),
        (_break_signature, "signature 0: subgraph_index", 5),
        (_break_signature_tensor, "signature 0, inputs 0: tensor_index", 10_000),
        (_break_shape, "subgraph 0, tensor 2: shape", (-3,)),
        (_break_shape_product, "subgraph 0, tensor 2: shape", (2**31 - 1,) * 3),
        (_break_type, "subgraph 0, tensor 2: type", 99),
        (_break_scale_count, "subgraph 0, tensor 0: quantization: scale", 3),
        (_break_zero_point_count, "subgraph 0, tensor 0: quantization: zero_point", 2),
        (_break_zero_point, "subgraph 0, tensor 0: quantization: zero_point", -(1 << 52)),
        (_break_version, "model: version", 2),
        (_break_subgraphs, "model: subgraphs", "none"),
    ],
)
def test_an_index_or_number_that_leads_nowhere_is_refused_and_named(change, field, got):
    data = changed(golden("digits_int8"), change)
    with refused(FlatbufferError, field=field, got=got):
        read(data)


@pytest.mark.parametrize(("place", "indices"), [("inputs", []), ("inputs", [-1]), ("outputs", [])])
def test_an_op_that_moves_values_from_or_to_nowhere_is_refused(place, indices):
    number = [op.name for op in read(golden("digits_int8")).main_subgraph.ops].index("RESHAPE")

    def change(model):
        setattr(model.subgraphs[0].operators[number], place, indices)

    with refused(FlatbufferError, field=f"subgraph 0, op {number}: {place}", got="none", word="RESHAPE"):
        read(changed(golden("digits_int8"), change))


def test_ops_that_read_each_others_outputs_are_refused():
    def change(model):
        ops = model.subgraphs[0].operators
        ops[1].inputs = [ops[2].outputs[0], *ops[1].inputs[1:]]

    with refused(FlatbufferError, field="subgraph 0, op 1: inputs"):
        read(changed(golden("digits_int8"), change))


def _file_of_one_op_repeated(count: int, inputs: int) -> bytes:
    """Return a model whose `count` ops are one table, with one vector of `inputs` indices."""
    builder = flatbuffers.Builder(1024)
    indices = builder.CreateNumpyVector(np.zeros(inputs, np.int32))
    generated.OperatorStart(builder)
    generated.OperatorAddInputs(builder, indices)
    op = generated.OperatorEnd(builder)
    generated.TensorStart(builder)
    tensor = generated.TensorEnd(builder)
    generated.OperatorCodeStart(builder)
    code = generated.OperatorCodeEnd(builder)
    quantized = _vector(builder, [code])
    tensors, ops = _vector(builder, [tensor]), _vector(builder, [op] * count)
    generated.SubGraphStart(builder)
    generated.SubGraphAddTensors(builder, tensors)
    generated.SubGraphAddOperators(builder, ops)
    graphs = _vector(builder, [generated.SubGraphEnd(builder)])
    generated.ModelStart(builder)
    generated.ModelAddVersion(builder, 3)
    generated.ModelAddOperatorCodes(builder, quantized)
    generated.ModelAddSubgraphs(builder, graphs)
    builder.Finish(generated.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _vector(builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in offsets:
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def test_one_vector_shared_by_many_ops_cannot_exhaust_the_reader():
    assert len(read(_file_of_one_op_repeated(3, inputs=5)).main_subgraph.ops) == 3
    # 200 million indices if trusted, from 120 kB.
    with refused(FlatbufferError, expected="parts that are stored once"):
        read(_file_of_one_op_repeated(20_000, inputs=10_000))


def test_one_table_repeated_cannot_exhaust_the_reader():
    with refused(FlatbufferError, expected="parts that are stored once"):
        read(_file_of_one_op_repeated(50_000, inputs=1))


def test_more_tables_than_any_model_has_are_refused(monkeypatch):
    monkeypatch.setattr(binary, "_MAX_TABLES", 50)
    with refused(FlatbufferError, expected=50, word="tables"):
        read(golden("digits_int8"))


def test_constant_values_are_the_stored_ones_in_their_shape():
    data = golden("digits_int8")
    model, other = read(data), unpacked(data)
    weights = model.main_subgraph.tensors[model.main_subgraph.ops[0].inputs[1]]
    values = constant_values(data, weights)
    stored = other.buffers[other.subgraphs[0].tensors[weights.index].buffer].data
    assert (values.shape, values.dtype) == (weights.shape, np.dtype("int8"))
    assert values.tobytes() == stored.tobytes()
    with refused(InputError, field="x0", expected=64):
        constant_values(data, model.main_subgraph.input_tensors[0])


def test_importing_the_room_loads_neither_tensorflow_nor_the_generated_schema():
    code = (
        "import sys, tfq.tflite; "
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'ai_edge_litert', 'flatbuffers')])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
