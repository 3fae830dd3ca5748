# SPDX-License-Identifier: Apache-2.0
"""The op lists of the target `tflm` compared with the kernels of the tflite-micro wheel, for each op and type."""

import faulthandler
import functools
import os

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from one_op_models import BUILT, TYPES, any_op_model, one_op_model

from tfq import registry, tflite
from tfq.auditing import Target, audit_model
from tfq.config import AuditConfig
from tfq.tflite.op_types import INDEX, roles
from tfq.tflite.schema import OPERATORS

pytestmark = pytest.mark.clients
# Not kernels, but numbers in the schema.
_NO_OPS = ("CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES")


@pytest.fixture(autouse=True)
def _wheel():
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: make clients installs it")


def tflm() -> Target:
    return registry.get(Target, "tflm", field="target")


@functools.cache
def said_by_wheel(model: bytes) -> str:
    """Return the wheel's message for a flatbuffer, empty if it runs. Runs in a child, because kernels may crash."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        faulthandler.disable()
        os.dup2(writer, 2)
        try:
            from tflite_micro.python.tflite_micro import runtime

            interpreter = runtime.Interpreter.from_bytes(model, arena_size=200_000)
            # The arena of a fork may hold anything.
            for index in range(len(tflite.read(model).main_subgraph.inputs)):
                detail = interpreter.get_input_details(index)
                interpreter.set_input(np.zeros(detail["shape"], detail["dtype"]), index)
            interpreter.invoke()
            os._exit(0)
        except BaseException as error:
            os.write(2, str(error).encode())
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    return "" if os.waitpid(child, 0)[1] == 0 else words or "crashed"


def is_registered(op: str) -> bool:
    return "Didn't find op" not in said_by_wheel(any_op_model(op))


def differences(ops_by_type) -> list[str]:
    """Return the disagreements between a table and the wheel."""
    return [
        f"{dtype} {op}: {words or 'runs'}"
        for op in BUILT
        for dtype in TYPES
        if bool(words := said_by_wheel(one_op_model(op, dtype))) == (op in ops_by_type[dtype])
    ]


def test_the_target_lists_exactly_the_ops_that_the_wheel_registers():
    listed = frozenset.union(*tflm().ops_by_type.values())
    assert {op for op in OPERATORS if op not in _NO_OPS and is_registered(op)} == listed


def test_target_lists_exactly_the_types_that_the_wheel_runs():
    assert differences(tflm().ops_by_type) == []


def test_a_wrong_entry_of_the_table_is_found():
    table = {**tflm().ops_by_type, "int16": tflm().ops_by_type["int16"] | {"GATHER"}}
    (difference,) = differences(table)
    assert difference.startswith("int16 GATHER")


def with_int64_indices(model: bytes) -> bytes | None:
    """Return the model with int64 instead of int32 for the indices, sizes and axes of its op; None if it has none."""
    graph = tflite.read(model).main_subgraph
    touched = {index for op in graph.ops for _, _, index, role in roles(op) if role == INDEX}
    touched = {index for index in touched if graph.tensors[index].dtype == "int32"}
    file = generated.ModelT.InitFromObj(generated.Model.GetRootAs(model))
    for index in touched:
        tensor = file.subgraphs[0].tensors[index]
        tensor.type, buffer = generated.TensorType.INT64, file.buffers[tensor.buffer]
        if buffer.data is not None and len(buffer.data):
            buffer.data = np.frombuffer(bytes(buffer.data), np.int32).astype(np.int64).view(np.uint8)
    for op in file.subgraphs[0].operators:
        for name in ("outputType", "outType"):
            if hasattr(op.builtinOptions, name):
                setattr(op.builtinOptions, name, generated.TensorType.INT64)
    builder = flatbuffers.Builder(len(model) * 2)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()) if touched else None


def test_exactly_the_listed_ops_need_int32_indices():
    refused, accepted = set(), set()
    for op in BUILT:
        for dtype in ("int8", "int32"):
            model = one_op_model(op, dtype)
            wide = None if said_by_wheel(model) else with_int64_indices(model)
            if wide is not None and said_by_wheel(wide):
                refused.add(op)
                accepted |= {op} if audit_model(wide, AuditConfig(require="tflm")).ok else set()
    # TRANSPOSE reads int64 as int32, and computes wrong outputs.
    assert refused == tflm().int32_index_ops - {"TRANSPOSE"}
    assert not accepted


def test_exactly_the_models_that_pass_the_audit_run_in_the_wheel():
    for op, dtype in (("SELECT_V2", "int8"), ("SELECT_V2", "int32"), ("SELECT", "int32"), ("ADD", "int32")):
        model = one_op_model(op, dtype)
        assert audit_model(model, AuditConfig(require="tflm")).ok == (not said_by_wheel(model)), (op, dtype)
