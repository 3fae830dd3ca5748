# SPDX-License-Identifier: Apache-2.0
"""The reader and the audit on a published file: MLPerf Tiny's int8 ResNet8."""

import pytest
from ai_edge_litert import schema_py_generated as generated

from tfq.auditing import audit_model
from tfq.tflite import read


@pytest.fixture(scope="module")
def resnet8(shared) -> bytes:
    return (shared / "models" / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes()


def test_records_equal_what_the_generated_api_reads(resnet8):
    ours = read(resnet8).main_subgraph
    theirs = generated.ModelT.InitFromObj(generated.Model.GetRootAs(resnet8))
    graph = theirs.subgraphs[0]
    assert len(theirs.subgraphs) == 1
    assert [list(op.inputs) for op in ours.ops] == [list(op.inputs) for op in graph.operators]
    assert [list(op.outputs) for op in ours.ops] == [list(op.outputs) for op in graph.operators]
    assert [tensor.name for tensor in ours.tensors] == [tensor.name.decode() for tensor in graph.tensors]
    assert [list(tensor.shape) for tensor in ours.tensors] == [list(tensor.shape) for tensor in graph.tensors]
    for tensor, other in zip(ours.tensors, graph.tensors, strict=True):
        scale = other.quantization.scale if other.quantization else None
        assert list(tensor.scale) == ([] if scale is None else list(scale))
        content = theirs.buffers[other.buffer].data
        stored = b"" if content is None else content.tobytes()
        assert resnet8[tensor.buffer_offset : tensor.buffer_offset + tensor.buffer_bytes] == stored


def test_resnet8_is_full_int8_and_its_layers_are_named(resnet8):
    report = audit_model(resnet8)
    assert report.ok
    assert report.scheme == "full_int8"
    assert report.op_counts == {
        "CONV_2D": 9,
        "ADD": 3,
        "AVERAGE_POOL_2D": 1,
        "RESHAPE": 1,
        "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }
    assert (report.weights_per_channel, report.weights_per_tensor) == (9, 1)
    assert {finding.kind for finding in report.findings} == {"dynamic_shape", "missing_signature"}
    # The nine convolutions of MLPerf Tiny's Keras source, in the order of its graph.
    layers = [op.keras_layer for op in read(resnet8).main_subgraph.ops if op.name == "CONV_2D"]
    assert layers == ["conv2d", *(f"conv2d_{index}" for index in range(1, 9))]
