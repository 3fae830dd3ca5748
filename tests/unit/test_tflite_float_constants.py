# SPDX-License-Identifier: Apache-2.0
"""Published forms of float files become float32 files that the interpreter computes the same outputs with."""

import math
import warnings

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from flatbuffers import flexbuffers
from golden_models import changed, golden, unpacked
from messages import refused, warned

from tfq import tflite
from tfq.auditing import audit_model, float_source
from tfq.errors import FlatbufferError, InputError
from tfq.tflite.sparse import densify

X = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
DENSE, COMPRESSED = generated.DimensionType.DENSE, generated.DimensionType.SPARSE_CSR


def outputs(model, resolver=OpResolverType.AUTO):
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def sparsity_of(dense, order, block_map, block_sizes, formats):
    """Encode `dense` as the schema describes: an independent, recursive encoder. Return the parameters and values."""
    rank = dense.ndim
    sizes = [
        size // math.prod([b for b, axis in zip(block_sizes, block_map, strict=True) if axis == at])
        for at, size in enumerate(dense.shape)
    ] + list(block_sizes)
    levels = [sizes[dimension] for dimension in order]
    segments, indices, values = [[0] for _ in levels], [[] for _ in levels], []

    def value(steps):
        position = [0] * rank
        for dimension, step in zip(order, steps, strict=True):
            if dimension < rank:
                inner = math.prod([b for b, axis in zip(block_sizes, block_map, strict=True) if axis == dimension])
                position[dimension] += step * inner
            else:
                position[block_map[dimension - rank]] += step
        return dense[tuple(position)]

    def is_empty(steps):
        if len(steps) == len(levels):
            return value(steps) == 0
        return all(is_empty([*steps, step]) for step in range(levels[len(steps)]))

    def encode(steps):
        level = len(steps)
        if level == len(levels):
            values.append(value(steps))
            return
        for step in range(levels[level]):
            if formats[level] == DENSE or not is_empty([*steps, step]):
                indices[level].append(step)
                encode([*steps, step])
        segments[level].append(len(indices[level]))

    encode([])
    parameters = generated.SparsityParametersT()
    parameters.traversalOrder, parameters.blockMap, parameters.dimMetadata = order, list(block_map), []
    for level, size in enumerate(levels):
        metadata = generated.DimensionMetadataT()
        metadata.format, metadata.denseSize = formats[level], size
        if formats[level] == COMPRESSED:
            metadata.denseSize = 0
            for name, numbers in (("arraySegments", segments[level]), ("arrayIndices", indices[level])):
                vector = generated.Int32VectorT()
                vector.values = np.array(numbers, np.int32)
                setattr(metadata, name, vector)
                setattr(metadata, f"{name}Type", generated.SparseIndexVector.Int32Vector)
        parameters.dimMetadata.append(metadata)
    return parameters, np.array(values, dense.dtype)


def with_sparse_weight(model, kind=np.float32):
    """Store the weights of the last dense layer sparse, in blocks of 1x2, behind DENSIFY (and DEQUANTIZE)."""
    graph = model.subgraphs[0]
    code = generated.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = generated.BuiltinOperator.DENSIFY
    model.operatorCodes.append(code)
    dense_op = next(op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == 9)
    weight = int(dense_op.inputs[1])
    readers = [op for op in graph.operators if weight in map(int, op.outputs)]
    stored = int(readers[0].inputs[0]) if readers else weight
    tensor = graph.tensors[stored]
    values = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(kind).reshape(tensor.shape).copy()
    values[:, :4] = 0
    formats = [DENSE, COMPRESSED, DENSE]
    parameters, kept = sparsity_of(values, [0, 1, 2], [1], [2], formats)
    sparse = generated.TensorT()
    sparse.name, sparse.shape, sparse.type, sparse.sparsity = b"sparse", tensor.shape, tensor.type, parameters
    sparse.hasRank = True
    buffer = generated.BufferT()
    buffer.data = np.frombuffer(kept.tobytes(), np.uint8)
    model.buffers.append(buffer)
    sparse.buffer, tensor.buffer = len(model.buffers) - 1, 0
    graph.tensors.append(sparse)
    op = generated.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, [len(graph.tensors) - 1], [stored]
    graph.operators = [op, *graph.operators]


@pytest.mark.parametrize("name", ["digits_float16", "digits_weight_only_int8", "digits_weight_only_int8_per_tensor"])
def test_dequantized_constants_become_float_bit_exactly(name):
    with warned("model"):
        result = float_source(golden(name))
    assert audit_model(result).scheme == "float32"
    assert "DEQUANTIZE" not in tflite.operator_names(result)
    np.testing.assert_array_equal(outputs(result)[0], outputs(golden(name))[0])


@pytest.mark.parametrize(("name", "kind"), [("digits_float32", np.float32), ("digits_float16", np.float16)])
@pytest.mark.filterwarnings("ignore")
def test_sparse_constants_become_dense_bit_exactly(name, kind):
    sparse = changed(golden(name), lambda model: with_sparse_weight(model, kind))
    result = float_source(sparse)
    assert not any(tensor.is_sparse for tensor in tflite.read(result).main_subgraph.tensors)
    np.testing.assert_array_equal(outputs(result)[0], outputs(sparse)[0])
    assert np.abs(outputs(result)[0] - outputs(golden(name))[0]).max() > 0  # the zeroed weights matter


@pytest.mark.parametrize(
    ("order", "block_map", "block_sizes", "formats"),
    [
        ([0, 1], [], [], [DENSE, COMPRESSED]),
        ([1, 0], [], [], [COMPRESSED, COMPRESSED]),
        ([0, 1, 2, 3], [0, 1], [2, 3], [COMPRESSED, DENSE, DENSE, DENSE]),
        ([1, 0, 3, 2], [0, 1], [2, 3], [DENSE, COMPRESSED, DENSE, DENSE]),
    ],
)
def test_densify_inverts_the_encoding_of_the_schema(order, block_map, block_sizes, formats):
    generator = np.random.default_rng(3)
    dense = generator.normal(size=(4, 6)) * np.kron(generator.random((2, 2)) > 0.5, np.ones((2, 3)))
    parameters, values = sparsity_of(dense, order, block_map, block_sizes, formats)
    np.testing.assert_array_equal(densify(parameters, values, dense.shape, "w"), dense)


@pytest.mark.parametrize("damage", ["values", "indices", "segments", "order"])
def test_damaged_sparsity_is_refused(damage):
    parameters, values = sparsity_of(np.eye(4), [0, 1], [], [], [DENSE, COMPRESSED])
    compressed = parameters.dimMetadata[1]
    if damage == "values":
        values = values[:-1]
    elif damage == "indices":
        compressed.arrayIndices.values[0] = 4
    elif damage == "segments":
        compressed.arraySegments.values[1] = 99
    else:
        parameters.traversalOrder = [0, 0]
    with refused(FlatbufferError, field="w"):
        densify(parameters, values, (4, 4), "w")


def test_hybrid_weights_become_float_and_the_warning_names_the_op():
    with warned("CONV_2D"):
        result = float_source(golden("digits_dynamic_range"))
    assert audit_model(result).scheme == "float32"
    expected = outputs(golden("digits_float32"))[0]
    assert np.abs(outputs(result)[0] - expected).max() < 0.02  # only the weights are rounded now


def test_a_float32_file_is_returned_unchanged():
    assert float_source(golden("digits_float32")) == golden("digits_float32")


@pytest.mark.parametrize("name", ["digits_int8", "digits_int8_float_io", "digits_int16x8", "float_island"])
def test_a_file_with_integer_activations_is_refused(name):
    with refused(
        InputError, field="model", expected="float32", limit="integer-tflite", got=audit_model(golden(name)).scheme
    ):
        float_source(golden(name))


def test_float16_activations_are_refused_with_the_op():
    def half(model):
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[-2].outputs[0])].type = generated.TensorType.FLOAT16

    with refused(InputError, got="float16", word="float16"):
        float_source(changed(golden("digits_float32"), half))


def with_blocks(edit=lambda details, scales: None):
    """Return a dynamic-range file of which one weight has float16 scales for blocks of 4, that weight and them."""
    kept = {}

    def blocks(model):
        graph = model.subgraphs[0]
        int8 = [tensor for tensor in graph.tensors if tensor.type == generated.TensorType.INT8]
        weight = next(tensor for tensor in int8 if tensor.shape[-1] % 4 == 0)
        scales = np.random.default_rng(1).uniform(0.01, 0.05, (*weight.shape[:-1], weight.shape[-1] // 4))
        scales = scales.astype(np.float16)
        kept.update(weight=model.buffers[weight.buffer].data.view(np.int8).reshape(weight.shape), scales=scales)
        buffer, tensor = generated.BufferT(), generated.TensorT()
        buffer.data = np.frombuffer(scales.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = b"scales", scales.shape, generated.TensorType.FLOAT16
        tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
        details = generated.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = len(graph.tensors) - 1, -1, 4
        edit(details, tensor)
        weight.quantization.scale = weight.quantization.zeroPoint = None
        weight.quantization.detailsType = generated.QuantizationDetails.BlockwiseQuantization
        weight.quantization.details = details

    return changed(golden("digits_dynamic_range"), blocks), kept["weight"], kept["scales"]


def test_each_block_of_a_weight_is_multiplied_by_its_scale():
    model, weight, scales = with_blocks()
    expected = np.zeros(weight.shape, np.float32)
    for (*rest, last), value in np.ndenumerate(weight):
        expected[(*rest, last)] = float(value) * float(scales[(*rest, last // 4)])
    with warned("int8"):
        buffers = [buffer.data for buffer in unpacked(float_source(model)).buffers]
    assert expected.tobytes() in [bytes(data) for data in buffers if data is not None]


@pytest.mark.parametrize(
    "edit",
    [
        lambda details, scales: setattr(details, "blockSize", 3),
        lambda details, scales: setattr(details, "blockSize", 0),
        lambda details, scales: setattr(details, "blockSize", 2),
        lambda details, scales: setattr(details, "scales", 1 << 20),
        lambda details, scales: setattr(details, "zeroPoints", details.scales),
        lambda details, scales: setattr(scales, "type", generated.TensorType.INT32),
    ],
)
def test_block_scales_that_do_not_fit_their_weight_are_refused(edit):
    with refused(FlatbufferError):
        float_source(with_blocks(edit)[0])


def test_a_custom_quantization_is_refused():
    def custom(model):
        weight = next(tensor for tensor in model.subgraphs[0].tensors if tensor.type == generated.TensorType.INT8)
        weight.quantization.detailsType = generated.QuantizationDetails.CustomQuantization
        weight.quantization.details = generated.CustomQuantizationT()

    with refused(InputError, field="model", limit="custom-quantization"):
        float_source(changed(golden("digits_dynamic_range"), custom))


def test_a_constant_of_several_ops_is_stored_once():
    def doubled(model):
        graph = model.subgraphs[0]
        op = next(op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == 6)
        other = generated.OperatorT()
        other.opcodeIndex, other.inputs = op.opcodeIndex, op.inputs
        twin = generated.TensorT()
        old = graph.tensors[int(op.outputs[0])]
        twin.name, twin.shape, twin.type, twin.hasRank = b"twin", old.shape, old.type, True
        graph.tensors.append(twin)
        other.outputs = [len(graph.tensors) - 1]
        graph.operators = [other, *graph.operators]
        graph.outputs = [*graph.outputs, len(graph.tensors) - 1]

    source = changed(golden("digits_float16"), doubled)
    result = tflite.with_float_constants(source).content
    builtin = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # XNNPACK cannot run the source
    for got, expected in zip(outputs(result, builtin), outputs(source, builtin), strict=True):
        np.testing.assert_array_equal(got, expected)
    buffers = [tensor.buffer for tensor in unpacked(result).subgraphs[0].tensors if tensor.buffer]
    assert len(set(buffers)) < len(buffers)


def test_data_outside_of_the_flatbuffer_is_read():
    def outside(model):
        tail = b""
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data):
                tail += bytes(-len(tail) % 16)
                buffer.offset, buffer.size = size + len(tail), len(buffer.data)
                tail += buffer.data.tobytes()
                buffer.data = None
        tails.append(tail)

    tails, size = [], 1 << 16
    content = changed(golden("digits_float16"), outside)
    content = content + bytes(size - len(content)) + tails[0]
    np.testing.assert_array_equal(outputs(content)[0], outputs(golden("digits_float16"))[0])
    result = tflite.with_float_constants(content).content
    np.testing.assert_array_equal(outputs(result)[0], outputs(content)[0])
    exposed, indices = tflite.expose_tensors(content, [tflite.read(content).main_subgraph.ops[1].outputs[0]])
    assert len(indices) == 2
    np.testing.assert_array_equal(outputs(exposed)[0], outputs(content)[0])


def composite(model, first, last):
    """Move the ops `first` to `last` of subgraph 0 into a composite's decomposition."""
    graph, inner = model.subgraphs[0], generated.SubGraphT()
    moved = graph.operators[first : last + 1]
    inside = {int(index) for op in moved for index in op.outputs}
    read = [int(index) for op in moved for index in op.inputs if index >= 0]
    constant = {index for index in read if model.buffers[graph.tensors[index].buffer].data is not None}
    inner.tensors, inner.operators = list(graph.tensors), moved
    inner.inputs = list(dict.fromkeys(index for index in read if index not in inside | constant))
    inner.outputs = list(map(int, moved[-1].outputs))
    code = generated.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = generated.BuiltinOperator.STABLEHLO_COMPOSITE, 127
    model.operatorCodes.append(code)
    op = generated.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, inner.inputs, inner.outputs
    op.builtinOptions2Type = generated.BuiltinOptions2.StableHLOCompositeOptions
    op.builtinOptions2 = generated.StableHLOCompositeOptionsT()
    op.builtinOptions2.name, op.builtinOptions2.decompositionSubgraphIndex = "odml.block", len(model.subgraphs)
    op.builtinOptions2.compositeAttributes = np.frombuffer(flexbuffers.Dumps({}), np.uint8)
    model.subgraphs.append(inner)
    graph.operators = [*graph.operators[:first], op, *graph.operators[last + 1 :]]


@pytest.mark.parametrize("nested", [False, True])
def test_composites_are_inlined_bit_exactly(nested):
    def moved(model):
        composite(model, 1, 3)
        if nested:
            composite(model, 0, 1)

    source = changed(golden("digits_float32"), moved)
    result = float_source(source)
    assert len(tflite.read(source).subgraphs) == 2 + nested
    assert len(tflite.read(result).subgraphs) == 1
    assert [op.name for op in tflite.read(result).main_subgraph.ops] == [
        op.name for op in tflite.read(golden("digits_float32")).main_subgraph.ops
    ]
    np.testing.assert_array_equal(outputs(result)[0], outputs(source)[0])


def test_a_composite_with_a_state_is_refused():
    def stateful(model):
        composite(model, 1, 3)
        model.subgraphs[-1].tensors[int(model.subgraphs[-1].operators[0].outputs[0])].isVariable = True

    with refused(InputError, field="model", limit="composite-state"):
        float_source(changed(golden("digits_float32"), stateful))


def test_a_composite_of_itself_is_refused():
    def moved(model):
        composite(model, 1, 3)
        model.subgraphs[0].operators[1].builtinOptions2.decompositionSubgraphIndex = 0

    with refused(FlatbufferError):
        float_source(changed(golden("digits_float32"), moved))


def test_damaged_sources_are_refused_or_read_but_never_crash():
    def change(model):
        with_sparse_weight(model, np.float16)
        composite(model, len(model.subgraphs[0].operators) - 2, len(model.subgraphs[0].operators) - 1)

    source = changed(golden("digits_float16"), change)
    generator, refusals = np.random.default_rng(0), 0
    for _ in range(40):
        mutant = bytearray(source)
        for place in generator.integers(0, 5000, 3):
            mutant[place] = generator.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                float_source(bytes(mutant))
            except InputError:
                refusals += 1
    assert 2 < refusals < 40
