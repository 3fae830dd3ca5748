# SPDX-License-Identifier: Apache-2.0
"""Published `.tflite` files as sources of a conversion: what they store, what they carry, and what is refused."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter
from messages import refused, warned
from sklearn.datasets import load_digits

import tfq
from tfq import tflite

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
IMAGES = load_digits().images[:64, ..., None].astype(np.float32)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.tflite").read_bytes()


def config(**values) -> tfq.ConversionConfig:
    return tfq.ConversionConfig(num_calibration_samples=64, verify=False, **values)


def converted(model: bytes, data=IMAGES, **values) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfq.convert(model, data, config(**values))


def classes(model: bytes) -> np.ndarray:
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (entry,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for image in IMAGES:
        scale, zero_point = entry["quantization"]
        values = image if scale == 0 else np.clip(np.rint(image / scale) + zero_point, -128, 127)
        interpreter.set_tensor(entry["index"], values[None].astype(entry["dtype"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]).argmax())
    return np.array(results)


@pytest.fixture(scope="module")
def from_float16() -> bytes:
    return converted(golden("digits_float16"))


def test_a_float16_file_becomes_full_int8(from_float16):
    assert tfq.audit(from_float16, tfq.AuditConfig(require="full_int8")).ok
    assert (classes(from_float16) == classes(golden("digits_float32"))).mean() > 0.95


def test_float16_to_float16_keeps_every_stored_weight():
    def stored(model):
        tensors = tflite.read(model).main_subgraph.tensors
        halves = [tensor for tensor in tensors if tensor.dtype == "float16" and tensor.is_constant]
        return sorted(tflite.constant_values(model, tensor).tobytes() for tensor in halves)

    source = golden("digits_float16")
    assert stored(converted(source, None, scheme="float16")) == stored(source) != []


def test_op_numbers_are_those_of_the_published_file():
    source = golden("digits_float16")
    op = next(op for op in tflite.read(source).main_subgraph.ops if op.name == "FULLY_CONNECTED")
    content = converted(source, float_layers=(f"op:{op.index}",))
    (result,) = [item for item in tflite.read(content).main_subgraph.ops if item.name == "FULLY_CONNECTED"]
    assert op.index != 0 and result.keras_layer == op.keras_layer
    assert tflite.read(content).main_subgraph.tensors[result.outputs[0]].dtype == "float32"


def with_labels(model: bytes) -> bytes:
    """Add metadata of the Task Library and an archive with labels, as its writer does."""
    edited = tflite.unpack(model)
    entry, buffer = generated.MetadataT(), generated.BufferT()
    entry.name, entry.buffer, buffer.data = "TFLITE_METADATA", len(edited.buffers), np.arange(32, dtype=np.uint8)
    edited.buffers.append(buffer)
    edited.metadata = [*(edited.metadata or []), entry]
    result = io.BytesIO(tflite.pack(edited, len(model)))
    with zipfile.ZipFile(result, "a") as archive:
        archive.writestr("labels.txt", "zero\none\n")
    return result.getvalue()


@pytest.mark.parametrize("target", ["", "gpu"])  # a GPU's file is packed again at the end
def test_labels_and_metadata_are_kept_and_int8_borders_are_mentioned(target):
    source = with_labels(golden("digits_float32"))
    with warned("labels.txt"):
        content = tfq.convert(source, IMAGES, config(target=target))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt") == b"zero\none\n"
    offset, size = tflite.read(content).metadata["TFLITE_METADATA"]
    assert content[offset : offset + size] == bytes(range(32))
    Interpreter(model_content=content).allocate_tensors()


def test_labels_that_cannot_be_read_are_left_out_with_a_warning():
    source = bytearray(with_labels(golden("digits_float32")))
    source[source.rindex(b"zero")] ^= 1
    with warned("labels"):
        content = tfq.convert(bytes(source), None, config(scheme="dynamic_range"))
    assert not zipfile.is_zipfile(io.BytesIO(content))


@pytest.mark.parametrize(("name", "batch_size"), [("digits_float32", 0), ("dynamic", 1)])
def test_a_batch_that_a_file_cannot_get_is_a_warning(name, batch_size):
    source = golden("digits_float32")
    if name == "dynamic":
        edited = tflite.unpack(source)
        for tensor in edited.subgraphs[0].tensors:
            if int(tensor.shape[0]) == 1 and edited.buffers[tensor.buffer].data is None:
                tensor.shapeSignature = [-1, *map(int, tensor.shape[1:])]
        source = tflite.pack(edited, len(source))
    with warned("batch"):
        tfq.convert(source, None, config(scheme="dynamic_range", batch_size=batch_size))


def changed(change) -> bytes:
    source = golden("digits_float32")
    edited = tflite.unpack(source)
    change(edited, edited.subgraphs[0])
    return tflite.pack(edited, len(source))


def unknown_op(edited, graph):
    code = generated.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = generated.BuiltinOperator.CUSTOM
    code.customCode, code.version = "Unknown", 1
    edited.operatorCodes.append(code)
    op = graph.operators[-1]
    op.opcodeIndex, op.builtinOptions, op.builtinOptionsType = len(edited.operatorCodes) - 1, None, 0


def variables(edited, graph):
    code = generated.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = generated.BuiltinOperator.CALL_ONCE, 127
    edited.operatorCodes.append(code)
    op = generated.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = len(edited.operatorCodes) - 1, [], []
    op.builtinOptionsType, op.builtinOptions = generated.BuiltinOptions.CallOnceOptions, generated.CallOnceOptionsT()
    op.builtinOptions.initSubgraphIndex = 1
    graph.operators = [op, *graph.operators]
    edited.subgraphs.append(generated.SubGraphT())
    edited.subgraphs[1].tensors = edited.subgraphs[1].operators = []
    edited.subgraphs[1].inputs = edited.subgraphs[1].outputs = []


def text_input(edited, graph):
    tensor = generated.TensorT()
    tensor.name, tensor.shape, tensor.type = "text", [1], generated.TensorType.STRING
    graph.tensors.append(tensor)
    graph.inputs = [*map(int, graph.inputs), len(graph.tensors) - 1]
    edited.signatureDefs = []


@pytest.mark.parametrize(
    ("change", "word", "got", "row"),
    [
        (unknown_op, "Unknown", ("Unknown",), {"limit": "custom-ops"}),
        (variables, "CALL_ONCE", ("CALL_ONCE",), {"limit": "tflite-state"}),
        (text_input, "string", "string", {"limit": "text-input"}),
    ],
)
def test_what_cannot_be_calibrated_is_refused_by_name(change, word, got, row):
    with refused(tfq.InputError, field="model", word=word, got=got, **row):
        tfq.convert(changed(change), IMAGES, config())


@pytest.mark.parametrize("name", ["same", None])
def test_tensors_may_have_equal_names_or_none(name, from_float16):
    def rename(edited, graph):
        for tensor in graph.tensors:
            tensor.name = name

    content = converted(changed(rename))
    (expected,), (signature,) = (tflite.read(model).signatures for model in (golden("digits_float32"), content))
    assert (signature.inputs.keys(), signature.outputs.keys()) == (expected.inputs.keys(), expected.outputs.keys())
    assert (classes(content) == classes(from_float16)).mean() > 0.95


def test_a_weight_scheme_that_finds_no_weights_is_a_warning():
    edited = tflite.unpack(golden("digits_float32"))
    graph = edited.subgraphs[0]
    graph.operators = [graph.operators[-1]]  # a softmax
    graph.inputs = graph.operators[0].inputs
    edited.signatureDefs = []
    with warned("float32"):
        tfq.convert(tflite.pack(edited, 9999), None, config(scheme="dynamic_range"))
