# SPDX-License-Identifier: Apache-2.0
"""Outcomes of converting one-op models: the table of docs/ops.md, and how it is measured."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from one_op_models import BUILT, one_op_model

import tfq
from tfq import tflite
from tfq.data import input_specs
from tfq.errors import InputError
from tfq.keras_bridge import import_keras

SCHEMES = ("int8", "int16x8")
NUM_SAMPLES = 20
# Ops whose one-op model has no float data, or is not what a converter writes (variable slopes, inputs without a batch).
_NOT_MEASURED = frozenset(
    (
        *("BROADCAST_ARGS", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "REDUCE_ALL", "REDUCE_ANY", "SHAPE"),
        *("BROADCAST_TO", "DYNAMIC_UPDATE_SLICE", "FILL", "GATHER", "GATHER_ND", "PRELU"),
    )
)
# Op -> a Keras layer or function that becomes it, for ops with weights or with constant indices and shapes.
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "BROADCAST_TO": ((4, 1, 3), lambda _: lambda x: import_keras().ops.broadcast_to(x, (1, 4, 5, 3))),
    "CONV_2D": ((6, 6, 3), lambda layers: layers.Conv2D(4, 3)),
    "CONV_3D": ((4, 4, 4, 2), lambda layers: layers.Conv3D(4, 3)),
    "DEPTHWISE_CONV_2D": ((6, 6, 3), lambda layers: layers.DepthwiseConv2D(3)),
    "FULLY_CONNECTED": ((8,), lambda layers: layers.Dense(4)),
    "GATHER": ((8, 3), lambda _: lambda x: import_keras().ops.take(x, [2, 0, 5], axis=1)),
    "PRELU": ((8,), lambda layers: layers.PReLU(alpha_initializer="ones")),
    "TOPK_V2": ((4, 8), lambda _: lambda x: import_keras().ops.top_k(x, 2)[0]),
    "TRANSPOSE_CONV": ((6, 6, 3), lambda layers: layers.Conv2DTranspose(4, 3, strides=2)),
}
MEASURED = (*(op for op in BUILT if op not in _NOT_MEASURED), *LAYERS)

# (int8, int16x8) -> ops, as `conversion_of` measures them.
_RESULTS: dict[tuple[str, str], str] = {
    ("int8", "int16"): """
        ABS ADD AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXP FULLY_CONNECTED
        GATHER GELU LEAKY_RELU LOG LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL PACK PAD PADV2 REDUCE_MAX
        REDUCE_MIN
        REDUCE_PROD RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SELECT SLICE SOFTMAX
        SPACE_TO_BATCH_ND SUB TANH TILE TRANSPOSE TRANSPOSE_CONV
    """,
    ("int8", "float"): """
        ARG_MAX ARG_MIN DEPTH_TO_SPACE DIV ELU EMBEDDING_LOOKUP EQUAL GREATER GREATER_EQUAL HARD_SWISH
        L2_NORMALIZATION LESS LESS_EQUAL LOG_SOFTMAX PRELU RELU_N1_TO_1 SELECT_V2 SPACE_TO_DEPTH SQRT TOPK_V2
    """,
    ("float", "float"): """
        ADD_N ATAN2 CAST CEIL CONV_3D COS CUMSUM FLOOR FLOOR_DIV FLOOR_MOD NOT_EQUAL POW ROUND SIGN SIN ZEROS_LIKE
    """,
    ("int8, as RESHAPE", "int16"): "EXPAND_DIMS SQUEEZE",
    ("int8, as MUL", "int16, as MUL"): "NEG SQUARE",
    ("int8, as SLICE", "int16, as SLICE"): "SPLIT SPLIT_V",
    ("refused", "float"): "L2_POOL_2D",
    ("int8", "int16, as MUL SUB"): "SQUARED_DIFFERENCE",
    ("int8, as SLICE", "int16"): "STRIDED_SLICE",
    ("int8", "int16, as MEAN MUL"): "SUM",
    ("int8, as STRIDED_SLICE", "int16, as STRIDED_SLICE"): "UNPACK",
}
CONVERSIONS = {op: results for results, ops in _RESULTS.items() for op in ops.split()}


def conversion_of(op: str, scheme: str) -> str:
    """Return how the model of an op converts: "int8", "int8, as MUL" (other ops), "float" or "refused"."""
    try:
        content = tfq.convert(*_model_of(op), tfq.ConversionConfig(scheme=scheme, num_calibration_samples=NUM_SAMPLES))
    except InputError:
        return "refused"
    graph = tflite.read(content).main_subgraph
    # At the edges of int16x8, a RESHAPE to the same shape takes the type of the inputs and outputs.
    ops = [item for item in graph.ops if item.name not in ("QUANTIZE", "DEQUANTIZE")]
    ops = [item for item in ops if op == "RESHAPE" or item.name != "RESHAPE"] or ops
    dtypes = {graph.tensors[index].dtype for item in ops for index in item.tensors}
    if "float32" in dtypes:
        return "float"
    [integer] = dtypes & {"int8", "int16"} if op not in LAYERS else {"int16" if scheme == "int16x8" else "int8"}
    others = sorted({item.name for item in ops} - {op})
    return f"{integer}, as {' '.join(others)}" if others else integer


def _model_of(op: str) -> tuple[Any, Any]:
    """Return the float model of an op, and samples for it."""
    rng = np.random.default_rng(0)
    if op in LAYERS:
        keras = import_keras()
        shape, layer = LAYERS[op]
        inputs = keras.Input(shape)
        samples = rng.uniform(-1, 1, (NUM_SAMPLES, *shape)).astype("float32")
        return keras.Model(inputs, layer(keras.layers)(inputs)), samples
    model = one_op_model(op, "float32")
    specs = input_specs(model)

    def samples() -> Iterator[list[np.ndarray]]:
        for _ in range(NUM_SAMPLES):
            yield [_sample(spec, rng) for spec in specs]

    return model, samples


def _sample(spec: Any, rng: np.random.Generator) -> np.ndarray:
    if spec.dtype == np.float32:
        return rng.uniform(0.1, 1.9, spec.shape).astype(np.float32)
    if spec.dtype == np.bool_:
        return rng.integers(0, 2, spec.shape).astype(bool)
    return np.zeros(spec.shape, spec.dtype)
