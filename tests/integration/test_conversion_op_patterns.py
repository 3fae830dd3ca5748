# SPDX-License-Identifier: Apache-2.0
"""Ops addressed by number or tensor name, in a file whose ops all seem to belong to one layer."""

import re
import warnings

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from messages import refused

import tfq
from tfq import tflite
from tfq.conversion import convert_with_record
from tfq.keras_bridge import import_keras

SAMPLES = np.random.default_rng(0).normal(0, 1, (16, 8, 8, 2)).cumsum(1).astype(np.float32)


@pytest.fixture(scope="module")
def floating() -> bytes:
    """Return four convolutions and a SPLIT, which tfq rewrites; every tensor is called "net/block/..."."""
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 2))
    one, two = ops.split(layers.Conv2D(4, 3, padding="same")(x), 2, axis=-1)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Concatenate()([two, one]))
    model = keras.Model(image, layers.Conv2D(2, 1)(layers.Conv2D(4, 3, padding="same")(x)))
    content = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    edited = tflite.unpack(tflite.write_metadata(content, {}))
    for number, tensor in enumerate(edited.subgraphs[0].tensors):
        tensor.name = f"net/block/t{number}"
    return tflite.pack(edited, len(content))


def converted(floating: bytes, **values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert_with_record(floating, SAMPLES, tfq.ConversionConfig(**values))


def convolutions(content: bytes) -> list[tflite.Op]:
    return [op for op in tflite.read(content).main_subgraph.ops if op.name == "CONV_2D"]


def weight_types(content: bytes) -> list[str]:
    tensors = tflite.read(content).main_subgraph.tensors
    return [tensors[op.inputs[1]].dtype for op in convolutions(content)]


def test_all_ops_of_the_file_are_of_one_layer(floating):
    assert {op.keras_layer for op in tflite.read(floating).main_subgraph.ops} == {"block"}


@pytest.mark.parametrize("form", ["number", "tensor"])
def test_one_op_stays_float_and_the_audit_allows_it(floating, form):
    op = convolutions(floating)[2]
    tensor = tflite.read(floating).main_subgraph.tensors[op.outputs[0]].name
    config = tfq.ConversionConfig(float_layers=(f"op:{op.index}" if form == "number" else tensor,))
    content = converted(floating, float_layers=config.float_layers).content
    assert weight_types(content) == ["int8", "int8", "float32", "int8"]
    report = tfq.audit(content, tfq.AuditConfig().for_conversion(config))
    assert report.ok and any(finding.allowed for finding in report.findings)
    assert "unused_allow_float" not in {finding.kind for finding in report.findings}
    assert not tfq.audit(content, tfq.AuditConfig(require="full_int8")).ok


def test_the_audit_uses_the_ops_number_in_its_own_file(floating):
    content = converted(floating, float_layers=(f"op:{convolutions(floating)[2].index}",)).content
    number = convolutions(content)[2].index
    assert number != convolutions(floating)[2].index
    assert tfq.audit(content, tfq.AuditConfig(require="full_int8", allow_float=(f"op:{number}",))).ok
    wrong = tfq.audit(content, tfq.AuditConfig(require="full_int8", allow_float=(f"op:{number + 100}",)))
    assert not wrong.ok and "unused_allow_float" in {finding.kind for finding in wrong.findings}


def test_numbers_choose_weights_of_4_bits_and_methods_of_calibration(floating):
    op = convolutions(floating)[1]
    result = converted(
        floating,
        int4_layers=(f"op:{op.index}",),
        calibration=tfq.CalibrationConfig(tensors=(f"op:{op.index}=min_max",)),
    )
    assert weight_types(result.content) == ["int8", "int4", "int8", "int8"]
    assert [key[1] for key, item in result.ranges.tensors.items() if item.method == "min_max"] == list(op.outputs)


def test_an_op_is_excluded_by_its_number_and_the_audit_agrees(floating):
    op = convolutions(floating)[1]
    config = tfq.ConversionConfig(int4_layers=(f"!op:{op.index}",))
    content = converted(floating, int4_layers=config.int4_layers).content
    assert weight_types(content) == ["int4", "int8", "int4", "int4"]
    report = tfq.audit(content, tfq.AuditConfig().for_conversion(config))
    assert report.ok and "unused_allow_int4" not in {finding.kind for finding in report.findings}
    first, second = (op.index for op in convolutions(content)[:2])
    assert tfq.audit(content, tfq.AuditConfig(require="full_int8", allow_int4=("*", f"!op:{second}"))).ok
    assert not tfq.audit(content, tfq.AuditConfig(require="full_int8", allow_int4=("*", f"!op:{first}"))).ok


def test_numbers_choose_16_bits_with_litert(floating):
    op = convolutions(floating)[3]
    content = converted(floating, quantizer="litert", int16_layers=(f"op:{op.index}",)).content
    tensors = tflite.read(content).main_subgraph.tensors
    assert [tensors[op.outputs[0]].dtype for op in convolutions(content)] == ["int8", "int8", "int8", "int16"]


@pytest.mark.parametrize("pattern", ["op:99", "op:1:0"])
def test_a_number_that_no_op_has_is_refused(floating, pattern):
    with refused(tfq.InputError, field="conversion.float_layers", got=pattern, word=pattern):
        converted(floating, float_layers=(pattern,))


def test_names_by_number_are_those_of_the_generated_reader(floating):
    model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(floating))
    graph = model.subgraphs[0]
    op = convolutions(floating)[0]
    content = converted(floating, float_layers=(f"op:{op.index}",)).content
    names = (tflite.read_metadata(content) or {})[tflite.ADDRESSED_OPS]
    expected = [graph.tensors[int(index)].name.decode() for index in graph.operators[op.index].outputs]
    assert names == {f"op:{op.index}": expected}
    assert re.fullmatch(r"net/block/t\d+", expected[0])
