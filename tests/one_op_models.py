# SPDX-License-Identifier: Apache-2.0
"""One-op flatbuffers of an op and an activation type, built by hand, to check whether a runtime has the kernel."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build, constant

from tfq.tflite.schema import TENSOR_TYPES

TYPES = ("int8", "int16", "float32", "int32", "int64", "bool")
SHAPE = (1, 2, 4, 4)
_SCALES = {"int8": 0.05, "int16": 0.001}
# The output scales that int8 kernels assume.
_FIXED = {
    "SOFTMAX": (1 / 256, -128),
    "LOGISTIC": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "LOG_SOFTMAX": (16 / 256, 127),
    "L2_NORMALIZATION": (1 / 128, 0),
}
_UNARY = """
    ABS CEIL COS ELU EXP FLOOR HARD_SWISH L2_NORMALIZATION LEAKY_RELU LOG LOG_SOFTMAX LOGISTIC NEG RELU RELU6 ROUND
    RSQRT SIN SOFTMAX SQRT SQUARE TANH ZEROS_LIKE LOGICAL_NOT SIGN GELU RELU_N1_TO_1
"""
_BINARY = """
    ADD SUB MUL DIV MAXIMUM MINIMUM FLOOR_MOD SQUARED_DIFFERENCE LOGICAL_AND LOGICAL_OR PRELU ADD_N POW ATAN2
"""
_COMPARING = "EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL"
_REDUCING = "SUM MEAN REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ALL REDUCE_ANY"
_POOLING = "AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D"
_OPTIONS = {
    "SOFTMAX": ("Softmax", {"beta": 1.0}),
    "LEAKY_RELU": ("LeakyRelu", {"alpha": 0.1}),
    "L2_NORMALIZATION": ("L2Norm", {}),
    "ADD": ("Add", {}),
    "SUB": ("Sub", {}),
    "MUL": ("Mul", {}),
    "DIV": ("Div", {}),
}


def options(kind: str, **values: Any) -> Any:
    """Return the table of a kind of builtin options."""
    result = getattr(generated, f"{kind}OptionsT")()
    for name, value in values.items():
        setattr(result, name, value)
    return result


def _tensor(dtype: str, shape: tuple[int, ...], values: Any = None) -> T:
    return T(dtype, shape, _SCALES.get(dtype), values=values)


Parts = tuple[dict[str, T], Any]


def _unary(op: str, dtype: str) -> Parts:
    x = y = _tensor(dtype, SHAPE)
    if dtype == "int8" and op in _FIXED:
        y = T(dtype, SHAPE, *_FIXED[op])
    elif dtype == "int16" and op in ("SOFTMAX", "LOGISTIC", "TANH"):
        y = T(dtype, SHAPE, 1 / 32768)
    kind, values = _OPTIONS.get(op, (None, {}))
    return {"x": x, "y": y}, options(kind, **values) if kind else None


def _binary(op: str, dtype: str) -> Parts:
    x, (kind, values) = _tensor(dtype, SHAPE), _OPTIONS.get(op, (None, {}))
    return {"x": x, "z": x, "y": x}, options(kind, **values) if kind else None


def _comparing(op: str, dtype: str) -> Parts:
    return {"x": _tensor(dtype, SHAPE), "z": _tensor(dtype, SHAPE), "y": T("bool", SHAPE)}, None


def _reducing(op: str, dtype: str) -> Parts:
    parts = {"x": _tensor(dtype, SHAPE), "axis": constant([1], "int32"), "y": _tensor(dtype, (1, 1, 4, 4))}
    return parts, options("Reducer", keepDims=True)


def _pooling(op: str, dtype: str) -> Parts:
    window = options("Pool2D", strideH=2, strideW=2, filterHeight=2, filterWidth=2, padding=1)
    return {"x": _tensor(dtype, SHAPE), "y": _tensor(dtype, (1, 1, 2, 4))}, window


def _shaped(
    kind: str | None, out: tuple[int, ...], inner: dict[str, Any] | None = None, into: str = "", **values: Any
) -> Callable[[str, str], Parts]:
    """Return x of SHAPE, int32 constants `inner`, and y of the shape `out` (of the type `into` if it differs)."""

    def parts(op: str, dtype: str) -> Parts:
        constants = {name: constant(value, "int32") for name, value in (inner or {}).items()}
        y = T(into, out) if into else _tensor(dtype, out)
        return {"x": _tensor(dtype, SHAPE), **constants, "y": y}, options(kind, **values) if kind else None

    return parts


def _several(kind: str | None, *shapes: tuple[int, ...], index: int | None = None, **values: Any) -> Any:
    """Return inputs of the first shapes and y of the last. index: the input that is int32 and not a constant."""

    def parts(op: str, dtype: str) -> Parts:
        tensors = {
            f"{'y' if place == len(shapes) - 1 else 'x'}{place}": T("int32", shape)
            if place == index
            else _tensor(dtype, shape)
            for place, shape in enumerate(shapes)
        }
        return tensors, options(kind, **values) if kind else None

    return parts


def _split(op: str, dtype: str) -> Parts:
    part = _tensor(dtype, (1, 2, 4, 2))
    x, axis = _tensor(dtype, SHAPE), constant(3, "int32")
    if op == "SPLIT":
        return {"axis": axis, "x": x, "y": part, "y2": part}, options("Split", numSplits=2)
    sizes = constant([2, 2], "int32")
    return {"x": x, "sizes": sizes, "axis": axis, "y": part, "y2": part}, options("SplitV", numSplits=2)


def _unpack(op: str, dtype: str) -> Parts:
    part = _tensor(dtype, (4,))
    return {"x": _tensor(dtype, (2, 4)), "y": part, "y2": part}, options("Unpack", axis=0, num=2)


def _select(op: str, dtype: str) -> Parts:
    x = _tensor(dtype, SHAPE)
    kind = "Select" if op == "SELECT" else "SelectV2"
    return {"condition": T("bool", SHAPE), "x": x, "z": x, "y": x}, options(kind)


def _with_constant(kind: str | None, values: Any, out: tuple[int, ...], first: dict[str, Any] | None = None) -> Any:
    """Return x, a constant of x's type, and y."""

    def parts(op: str, dtype: str) -> Parts:
        array = np.asarray(values).astype(dtype)
        constants = {name: constant(value, "int32") for name, value in (first or {}).items()}
        tensors = {"x": _tensor(dtype, SHAPE), **constants, "k": _tensor(dtype, array.shape, array)}
        return {**tensors, "y": _tensor(dtype, out)}, options(kind) if kind else None

    return parts


def _embedding(op: str, dtype: str) -> Parts:
    table = _tensor(dtype, (4, 4), np.ones((4, 4), dtype))
    return {"ids": T("int32", (2,)), "table": table, "y": _tensor(dtype, (2, 4))}, None


def _fill(op: str, dtype: str) -> Parts:
    return {"dims": constant([1, 4], "int32"), "x": _tensor(dtype, ()), "y": _tensor(dtype, (1, 4))}, options("Fill")


def _cast(op: str, dtype: str) -> Parts:
    into = "float32" if dtype == "int32" else "int32"
    types = {"inDataType": TENSOR_TYPES.index(dtype), "outDataType": TENSOR_TYPES.index(into)}
    return {"x": T(dtype, SHAPE), "y": T(into, SHAPE)}, options("Cast", **types)


_PADDINGS = {"paddings": [[0, 0], [1, 1], [1, 1], [0, 0]]}
_BLOCKS = {"block": [2, 2], "crops": [[0, 0], [0, 0]]}
_CORNER = {"begin": [0, 0, 0, 0], "end": [1, 1, 2, 2]}
_PARTS: dict[str, Callable[[str, str], Parts]] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(_BINARY.split(), _binary),
    **dict.fromkeys(_COMPARING.split(), _comparing),
    **dict.fromkeys(_REDUCING.split(), _reducing),
    **dict.fromkeys(_POOLING.split(), _pooling),
    **dict.fromkeys(("SELECT", "SELECT_V2"), _select),
    **dict.fromkeys(("SPLIT", "SPLIT_V"), _split),
    "UNPACK": _unpack,
    "EMBEDDING_LOOKUP": _embedding,
    "FILL": _fill,
    "CAST": _cast,
    "FLOOR_DIV": _with_constant(None, np.ones(SHAPE), SHAPE),
    "PADV2": _with_constant("PadV2", 0, (1, 4, 6, 4), _PADDINGS),
    "RESHAPE": _shaped(None, (1, 32), {"shape": [1, 32]}),
    "ARG_MAX": _shaped("ArgMax", SHAPE[:3], {"axis": 3}, "int32", outputType=2),
    "ARG_MIN": _shaped("ArgMin", SHAPE[:3], {"axis": 3}, "int32", outputType=2),
    "PAD": _shaped("Pad", (1, 4, 6, 4), _PADDINGS),
    "MIRROR_PAD": _shaped("MirrorPad", (1, 4, 6, 4), _PADDINGS),
    "TRANSPOSE": _shaped("Transpose", (1, 4, 2, 4), {"perm": [0, 2, 1, 3]}),
    "SLICE": _shaped("Slice", (1, 1, 2, 2), {"begin": [0] * 4, "size": [1, 1, 2, 2]}),
    "STRIDED_SLICE": _shaped("StridedSlice", (1, 1, 2, 2), {**_CORNER, "strides": [1] * 4}),
    "SQUEEZE": _shaped("Squeeze", SHAPE[1:], squeezeDims=[0]),
    "EXPAND_DIMS": _shaped("ExpandDims", (1, *SHAPE), {"axis": 0}),
    "SHAPE": _shaped("Shape", (4,), into="int32", outType=2),
    "CUMSUM": _shaped("Cumsum", SHAPE, {"axis": 1}),
    "BROADCAST_TO": _shaped("BroadcastTo", (3, *SHAPE[1:]), {"shape": [3, *SHAPE[1:]]}),
    "REVERSE_V2": _shaped("ReverseV2", SHAPE, {"axis": [1]}),
    "TILE": _shaped(None, (1, 4, 4, 4), {"multiples": [1, 2, 1, 1]}),
    "DEPTH_TO_SPACE": _shaped("DepthToSpace", (1, 4, 8, 1), blockSize=2),
    "SPACE_TO_DEPTH": _shaped("SpaceToDepth", (1, 1, 2, 16), blockSize=2),
    "SPACE_TO_BATCH_ND": _shaped(None, (4, 1, 2, 4), _BLOCKS),
    "RESIZE_BILINEAR": _shaped("ResizeBilinear", (1, 4, 8, 4), {"size": [4, 8]}),
    "RESIZE_NEAREST_NEIGHBOR": _shaped("ResizeNearestNeighbor", (1, 4, 8, 4), {"size": [4, 8]}),
    "CONCATENATION": _several("Concatenation", SHAPE, SHAPE, (1, 2, 4, 8), axis=3),
    "PACK": _several("Pack", SHAPE, SHAPE, (2, *SHAPE), axis=0, valuesCount=2),
    "GATHER": _several("Gather", (4, 4), (2,), (2, 4), index=1, axis=0),
    "GATHER_ND": _several("GatherNd", (4, 4), (2, 1), (2, 4), index=1),
    "DYNAMIC_UPDATE_SLICE": _several("DynamicUpdateSlice", (4, 4), (1, 4), (2,), (4, 4), index=2),
    "BATCH_MATMUL": _several("BatchMatMul", (1, 4, 4), (1, 4, 4), (1, 4, 4)),
    "BROADCAST_ARGS": _several(None, (2,), (2,), (2,)),
}
BUILT = tuple(_PARTS)


def one_op_model(op: str, dtype: str) -> bytes:
    """Return a flatbuffer of `op` alone with data of `dtype`. op: one of BUILT."""
    tensors, table = _PARTS[op](op, dtype)
    inputs = [name for name in tensors if not name.startswith("y")]
    outputs = [name for name in tensors if name.startswith("y")]
    fed = [name for name in inputs if tensors[name].values is None]
    return build(tensors, [Call(op, inputs, outputs, table)], fed, outputs)


def any_op_model(op: str) -> bytes:
    """Return a flatbuffer of `op` with one input and one output: enough for a runtime to look for its kernel."""
    x = T("float32", (1, 4))
    return build({"x": x, "y": x}, [Call(op, ["x"], ["y"])], ["x"], ["y"])
