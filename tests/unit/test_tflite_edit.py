# SPDX-License-Identifier: Apache-2.0
"""Signatures, metadata and ranges written into flatbuffers, checked by the interpreter and the generated reader."""

import math
import time

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter
from golden_models import NAMES, changed, golden, unpacked
from messages import refused

from tfq.auditing import audit_model
from tfq.errors import FlatbufferError, InputError
from tfq.tflite import (
    Signature,
    add_signature,
    edit_model,
    expose_tensors,
    inject_ranges,
    read,
    read_metadata,
    read_ranges,
    write_metadata,
)

RUNNABLE = [name for name in NAMES if name not in ("custom_op", "flex_op")]


def _output(data: bytes) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = rng.integers(0, 100, detail["shape"]) if detail["dtype"] != np.float32 else rng.random(detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


@pytest.mark.parametrize("name", RUNNABLE)
def test_edited_file_computes_the_same_and_keeps_everything_else(name):
    data = golden(name)
    edited = edit_model(data, metadata={"note": "x"}, ranges={})
    assert edited[4:8] == b"TFL3"
    before, after = read(data), read(edited)
    for old, new in zip(before.subgraphs, after.subgraphs, strict=True):
        assert (new.ops, new.inputs, new.outputs) == (old.ops, old.inputs, old.outputs)
        assert [tensor.scale for tensor in new.tensors] == [tensor.scale for tensor in old.tensors]
    assert after.signatures == before.signatures
    assert set(after.metadata_names) == {*before.metadata_names, "tfq"}
    for old, new in zip(_output(data), _output(edited), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", RUNNABLE)
def test_file_with_more_outputs_computes_the_same_and_keeps_everything_else(name):
    data = golden(name)
    before = read(data)
    graph = before.main_subgraph
    inner = [op.outputs[0] for op in graph.ops]
    exposed, outputs = expose_tensors(data, inner)
    assert outputs == (*graph.outputs, *(index for index in inner if index not in graph.outputs))
    after = read(exposed)
    assert (after.main_subgraph.ops, after.main_subgraph.inputs) == (graph.ops, graph.inputs)
    assert after.main_subgraph.outputs == outputs
    assert (after.signatures, after.description) == ((), before.description)
    assert after.metadata_names == before.metadata_names
    for old, new in zip(graph.tensors, after.main_subgraph.tensors, strict=True):
        assert old.buffer_bytes == new.buffer_bytes
        assert (old.buffer_offset - new.buffer_offset) % 16 == 0
    for old, new in zip(_output(data), _output(exposed), strict=False):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("names", [[], None])
def test_outputs_are_added_to_a_graph_without_inputs_and_outputs(names):
    def remove(model):
        model.subgraphs[0].inputs = model.subgraphs[0].outputs = names

    data = changed(golden("digits_float32"), remove)
    inner = read(data).main_subgraph.ops[2].outputs[0]
    exposed, outputs = expose_tensors(data, [inner])
    assert outputs == read(exposed).main_subgraph.outputs == (inner,) and not read(exposed).main_subgraph.inputs


@pytest.mark.parametrize("name", ["digits_float32", "digits_int8"])
def test_constants_stay_aligned_to_16_bytes(name):
    edited = write_metadata(golden(name), {"a": "odd"})
    tensors = read(edited).main_subgraph.tensors
    assert {tensor.buffer_offset % 16 for tensor in tensors if tensor.is_constant} == {0}


def test_added_signature_is_run_by_its_names():
    data = golden("digits_int8_keras3")
    graph = read(data).main_subgraph
    signed = add_signature(data, {"picture": graph.inputs[0]}, {"digit": graph.outputs[0]})
    assert not read(data).signatures
    assert read(signed).signatures == (
        Signature(inputs={"picture": graph.inputs[0]}, outputs={"digit": graph.outputs[0]}),
    )
    interpreter = Interpreter(model_content=signed)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["picture"], "outputs": ["digit"]}}
    picture = np.random.default_rng(0).integers(0, 100, (1, 8, 8, 1)).astype(np.int8)
    backend = interpreter.get_signature_runner("serving_default")
    np.testing.assert_array_equal(backend(picture=picture)["digit"], _output(data)[0])


def test_signature_of_the_same_key_is_replaced_and_another_is_kept():
    data = golden("digits_int8")
    graph = read(data).main_subgraph
    twice = add_signature(data, {"a": graph.inputs[0]}, {"b": graph.outputs[0]})
    assert [signature.inputs for signature in read(twice).signatures] == [{"a": graph.inputs[0]}]
    both = add_signature(data, {"a": graph.inputs[0]}, {"b": graph.outputs[0]}, key="other")
    assert [signature.key for signature in read(both).signatures] == ["serving_default", "other"]
    pair = edit_model(data, signature=({"a": graph.inputs[0]}, {"b": graph.outputs[0]}))
    assert pair == twice


@pytest.mark.parametrize(
    ("inputs", "outputs"), [({}, {"b": 20}), ({"a": 1}, {"b": 20}), ({"a": 0, "again": 0}, {"b": 20}), ({"a": 0}, {})]
)
def test_signature_must_name_each_input_and_output_once(inputs, outputs):
    data = golden("digits_int8")
    assert (read(data).main_subgraph.inputs, read(data).main_subgraph.outputs) == ((0,), (20,))
    with refused(InputError, word="expected"):
        add_signature(data, inputs, outputs)


def test_metadata_comes_back_and_the_last_value_stands():
    data = golden("digits_int8")
    value = {"keras_layers": ["a", "ß"], "preprocessing": {"resize": [], "scale": 1.0, "offset": 0.0}, "none": None}
    assert read_metadata(data) is None
    once = write_metadata(data, {"old": 1})
    assert read_metadata(write_metadata(once, value)) == value
    assert read(once).metadata_names.count("tfq") == 1
    assert len(unpacked(write_metadata(once, value)).metadata) == len(unpacked(once).metadata)
    # The order of keys is not part of the value.
    assert write_metadata(data, dict(reversed(value.items()))) == write_metadata(data, value)


@pytest.mark.parametrize("value", [{"x": math.nan}, {"x": object()}, {"x": math.inf}])
def test_metadata_that_json_cannot_hold_is_refused(value):
    with refused(InputError, word="finite"):
        write_metadata(golden("digits_int8"), value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b'{"x": NaN}', b"\xff\xfe", b"1" * 10_000, b""])
def test_metadata_that_is_not_a_json_object_is_an_error(content):
    def change(model):
        entry = next(entry for entry in model.metadata if entry.name == b"tfq")
        model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)

    data = changed(write_metadata(golden("digits_int8"), {}), change)
    with refused(FlatbufferError, word="expected"):
        read_metadata(data)
    assert read(data).main_subgraph.ops[0].keras_layer == "conv1"
    assert audit_model(data).ok


def test_ranges_come_back_as_float32_and_reach_the_schema():
    data = golden("digits_float32")
    ranges = {(0, 0): (0.0, 16.0), (0, 12): (-1.5, 0.1)}
    injected = inject_ranges(data, ranges)
    assert read_ranges(data) == {}
    assert read_ranges(injected) == {(0, 0): (0.0, 16.0), (0, 12): (-1.5, float(np.float32(0.1)))}
    quantization = unpacked(injected).subgraphs[0].tensors[12].quantization
    assert (list(quantization.min), list(quantization.max)) == ([-1.5], [float(np.float32(0.1))])
    np.testing.assert_array_equal(_output(injected)[0], _output(data)[0])


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("digits_float32", {(0, 999): (0.0, 1.0)}),
        ("digits_float32", {(1, 0): (0.0, 1.0)}),
        ("digits_float32", {(0, 0): (1.0, 0.0)}),
        ("digits_float32", {(0, 0): (math.nan, 1.0)}),
        ("digits_float32", {(0, 0): (0.0, math.inf)}),
        ("digits_float32", {(0, 0): (0.0, 1e39)}),
        ("digits_int8", {(0, 0): (0.0, 1.0)}),
    ],
)
def test_range_without_a_float_tensor_or_without_meaning_is_refused(name, ranges):
    with refused(InputError, word="tensor"):
        inject_ranges(golden(name), ranges)


def test_the_same_edit_gives_the_same_bytes_as_its_parts():
    data = golden("digits_float32")
    whole = edit_model(data, metadata={"b": 1, "a": 2}, ranges={(0, 0): (0.0, 16.0)})
    assert whole == edit_model(data, metadata={"a": 2, "b": 1}, ranges={(0, 0): (0.0, 16.0)})
    assert (
        read(whole).subgraphs
        == read(inject_ranges(write_metadata(data, {"a": 2, "b": 1}), {(0, 0): (0.0, 16.0)})).subgraphs
    )


def _large_model(megabytes: int) -> bytes:
    """Return digits_float32 with an additional constant of this many MB."""

    def change(model):
        buffer = generated.BufferT()
        buffer.data = np.random.default_rng(0).integers(0, 255, megabytes * 2**20, np.uint8)
        tensor = generated.TensorT()
        tensor.name, tensor.shape, tensor.buffer = "large", [megabytes * 2**18], len(model.buffers)
        model.buffers.append(buffer)
        model.subgraphs[0].tensors.append(tensor)

    model = unpacked(golden("digits_float32"))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_twenty_megabytes_are_edited_and_read_in_well_under_a_second():
    data = _large_model(20)
    graph = read(data).main_subgraph
    names = ({"image": graph.inputs[0]}, {"digit": graph.outputs[0]})
    start = time.process_time()
    edited = edit_model(data, signature=names, metadata={"a": 1}, ranges={(0, 0): (0.0, 1.0)})
    seconds = time.process_time() - start
    assert seconds < 0.5
    start = time.process_time()
    assert len(read(edited).main_subgraph.tensors) == len(graph.tensors)
    assert time.process_time() - start < 0.1
    np.testing.assert_array_equal(_output(edited)[0], _output(data)[0])
