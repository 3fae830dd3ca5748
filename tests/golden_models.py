# SPDX-License-Identifier: Apache-2.0
"""The small flatbuffers of tests/golden, and changes to them that are independent of the code under test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as generated

GOLDEN = Path(__file__).resolve().parent / "golden"
NAMES = tuple(sorted(path.stem for path in GOLDEN.glob("*.tflite")))

FLOAT32, INT32, UINT8, INT64, BOOL, INT16, INT8 = (
    getattr(generated.TensorType, name) for name in ("FLOAT32", "INT32", "UINT8", "INT64", "BOOL", "INT16", "INT8")
)


def golden(name: str) -> bytes:
    """Return the bytes of tests/golden/<name>.tflite."""
    return (GOLDEN / f"{name}.tflite").read_bytes()


def unpacked(data: bytes) -> Any:
    """Return the flatbuffer as the generated object API reads it."""
    return generated.ModelT.InitFromObj(generated.Model.GetRootAs(data))


def changed(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """Return `data` after applying `change` to its object form."""
    model = unpacked(data)
    change(model)
    builder = flatbuffers.Builder(len(data) * 2)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
