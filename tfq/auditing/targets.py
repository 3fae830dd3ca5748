# SPDX-License-Identifier: Apache-2.0
"""Targets that run flatbuffers: the ops that each of them supports (with the source), and further rules.

A violation means that the target cannot run the file. That it runs the rest must be tested on the target.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq import registry
from tfq.auditing.schemes import NARROW_HYBRID
from tfq.config import AUDIT_SCHEMES, SCHEMES
from tfq.errors import InputError
from tfq.registry import register


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _versions(text: str) -> dict[str, int]:
    """Parse "ADD=2 ..." into {"ADD": 2, ...}."""
    return {name: int(version) for name, version in (entry.split("=") for entry in text.split())}


@registry.extension_point("target")
@dataclass(frozen=True, kw_only=True)
class Target:
    """A target that runs flatbuffers: the ops and types that it supports.

    `conversion.target` applies these facts to a conversion, `audit.require` to an audit.

    Args:
        name: What users write in `conversion.target` and `audit.require`. It must differ from the names of schemes.
        help: What it is, for `--help` and the documentation.
        title: Its name within a sentence of a message: "the Edge TPU".
        short_title: Its name in tables: "Edge TPU".
        source: Where the op table and the rules were read or measured, with version or date.
        schemes: The conversion schemes that it runs; the first is the one to suggest.
        io_types: The types that a model's inputs and outputs may have; the first is the one to suggest.
        integer_ops: TFLite names of the ops that it runs on integer activations.
        float_ops: Those that it runs on float activations.
        hybrid_ops: Those that it runs on float activations with integer weights.
        narrow_hybrid: Op -> the types of fewer than 8 bits that its weights may have with float activations.
        index_ops: Those that it runs on indices, shapes and conditions (int32, int64, bool).
        ops_by_type: Activation type -> the ops that it runs on this type, if known per type. The sets above apply to
            other types.
        int32_index_ops: Ops whose indices, sizes and axes must be int32, not int64.
        wrong_ops: Activation type -> the ops that it runs on this type with wrong results.
        max_versions: The newest supported version of an op, if known.
        per_channel_dense: Whether weights of fully connected layers may have one scale per channel; those of
            convolutions always may. If not, a conversion for this target gives them one scale.
        per_channel_dense_reason: Why they may not.
        strided_pointwise: Whether it computes integer 1x1 convolutions with a stride right. If not, a conversion for
            this target moves the stride into a MAX_POOL_2D of size 1.
        exact_average_pools: Whether its int8 AVERAGE_POOL_2D rounds a mean halfway between two integers as TFLite does.
            If not, a conversion for this target replaces it with a DEPTHWISE_CONV_2D.
        unread_results: Whether it runs models with an int8 result that no op reads. If not, a conversion for this
            target removes ops without a read result.
        static_shapes: Whether all shapes must be fixed. If so, a conversion refuses a dynamic batch.
        max_axes: The largest number of axes of a tensor; 0 is unlimited.
        removes_axes: Whether its STRIDED_SLICE can remove axes, as `x[:, 0]` does.
        only_inner_axes: Whether only the innermost three axes of a tensor may be longer than 1.
        max_softmax: The largest number of classes of SOFTMAX; 0 is unlimited.
        custom_ops: The custom ops that it runs.
        full_uint8: Whether it also runs models that are quantized to uint8, as TensorFlow 1 wrote them.
        deprecated: Why new apps should not use it, and what to use instead; "" if it is not deprecated.
        has_builtin_kernels: Whether TFLite's builtin kernels on the same CPU run the ops that it does not support.
    """

    name: str
    help: str
    title: str
    short_title: str
    source: str
    schemes: tuple[str, ...]
    io_types: tuple[str, ...]
    integer_ops: frozenset[str]
    float_ops: frozenset[str] = frozenset()
    hybrid_ops: frozenset[str] = frozenset()
    narrow_hybrid: Mapping[str, frozenset[str]] = field(default_factory=dict)
    index_ops: frozenset[str] = frozenset()
    ops_by_type: Mapping[str, frozenset[str]] = field(default_factory=dict)
    int32_index_ops: frozenset[str] = frozenset()
    wrong_ops: Mapping[str, frozenset[str]] = field(default_factory=dict)
    max_versions: Mapping[str, int] = field(default_factory=dict)
    per_channel_dense: bool = True
    per_channel_dense_reason: str = ""
    strided_pointwise: bool = True
    exact_average_pools: bool = True
    unread_results: bool = True
    static_shapes: bool = True
    max_axes: int = 0
    removes_axes: bool = True
    only_inner_axes: bool = False
    max_softmax: int = 0
    custom_ops: frozenset[str] = frozenset()
    full_uint8: bool = False
    deprecated: str = ""
    has_builtin_kernels: bool = False

    def __post_init__(self) -> None:
        """Check name and schemes."""
        if self.name in AUDIT_SCHEMES:
            raise InputError(
                f"target: {self.name!r} is the name of a scheme: choose another name", field="name", got=self.name
            )
        unknown = [scheme for scheme in self.schemes if scheme not in SCHEMES]
        if unknown or not self.schemes:
            raise InputError(
                f"target {self.name}: schemes {list(self.schemes)}: expected some of {', '.join(SCHEMES)}",
                field="schemes",
                expected=SCHEMES,
                got=self.schemes,
            )

    @property
    def columns(self) -> dict[str, str]:
        """Return the further cells of its row in the documentation."""
        return {
            "schemes": ", ".join(self.schemes),
            "inputs and outputs": ", ".join(self.io_types),
            "ops on integers": str(len(self.integer_ops)),
            "ops on floats": str(len(self.float_ops)),
            "ops on indices": str(len(self.index_ops)),
            "source": self.source,
        }


def find_target(name: str) -> Target | None:
    """Return the target called `name`, or None if there is none (for example, if it is a scheme)."""
    return registry.entries(Target).get(name)


# Measured: one-op models, float32 and full int8, whose op became a node of the delegate.
_XNNPACK_BOTH = _names("""
    ADD CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE FULLY_CONNECTED LEAKY_RELU LOGISTIC
    MAX_POOL_2D MEAN MUL PAD QUANTIZE REDUCE_MAX REDUCE_MIN RESHAPE RESIZE_BILINEAR SLICE SPACE_TO_DEPTH SPLIT SUB SUM
    TANH TRANSPOSE TRANSPOSE_CONV
""")
register(
    Target(
        name="xnnpack",
        help="TFLite on a CPU (x86, ARM, WebAssembly) with its XNNPACK delegate",
        title="XNNPACK",
        short_title="XNNPACK",
        schemes=(
            *("int8", "dynamic_range", "float16", "float32"),
            *("weight_only_int8", "weight_only_int4", "weight_only_int2"),
        ),
        io_types=("int8", "uint8", "float32"),
        integer_ops=_XNNPACK_BOTH,
        float_ops=_XNNPACK_BOTH
        | _names("""
            ABS AVERAGE_POOL_2D BATCH_MATMUL CEIL COS DIV ELU EXP FLOOR GELU HARD_SWISH LOG MAXIMUM MINIMUM NEG RELU
            RELU6 ROUND RSQRT SIN SOFTMAX SQRT SQUARE SQUARED_DIFFERENCE
        """),
        hybrid_ops=_names("CONV_2D FULLY_CONNECTED TRANSPOSE_CONV"),
        narrow_hybrid=NARROW_HYBRID,
        static_shapes=False,
        custom_ops=_names("Convolution2DTransposeBias MaxPoolingWithArgmax2D MaxUnpooling2D"),
        has_builtin_kernels=True,
        source="measured on ai-edge-litert 2.1.6, x86-64; scales: xnn_define_quantized_tensor_value",
    )
)

# Measured per type with one-op models in the wheel; a test repeats it (tests/clients). First the ops that run on all
# types, control flow and variables.
_TFLM_ALL = """
    ASSIGN_VARIABLE BROADCAST_TO CALL_ONCE CONCATENATION IF LOGICAL_AND LOGICAL_OR READ_VARIABLE RESHAPE
    REVERSE_V2 SHAPE SQUEEZE VAR_HANDLE WHILE
"""
_TFLM_OPS = {
    "int8": """
        ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND CAST CONV_2D CUMSUM
        DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL
        EXPAND_DIMS FILL FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION
        LEAKY_RELU LESS LESS_EQUAL LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL
        NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RESIZE_BILINEAR
        RESIZE_NEAREST_NEIGHBOR RSQRT SELECT_V2 SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V
        SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
        UNPACK ZEROS_LIKE
    """,
    "int16": """
        ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DYNAMIC_UPDATE_SLICE
        EXPAND_DIMS FULLY_CONNECTED GREATER LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD
        PADV2 QUANTIZE RELU RELU6 RESIZE_NEAREST_NEIGHBOR RSQRT SELECT_V2 SLICE SOFTMAX SPLIT SPLIT_V
        SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
        UNPACK
    """,
    "float32": """
        ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND CAST CEIL CONV_2D COS
        CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL
        EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL
        HARD_SWISH L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGISTIC LOG_SOFTMAX MAXIMUM
        MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE REDUCE_MAX
        REDUCE_MIN RELU RELU6 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT_V2 SIN SLICE SOFTMAX
        SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM SVDF
        TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK ZEROS_LIKE
    """,
    "int32": """
        ADD BROADCAST_ARGS CAST DYNAMIC_UPDATE_SLICE EQUAL FILL GREATER GREATER_EQUAL LESS LESS_EQUAL MAXIMUM
        MINIMUM MUL NOT_EQUAL PACK PAD PADV2 SLICE SPLIT SPLIT_V SQUARED_DIFFERENCE STRIDED_SLICE SUB UNPACK
        ZEROS_LIKE
    """,
    "int64": """
        BROADCAST_ARGS EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL MAXIMUM MINIMUM NOT_EQUAL PACK ZEROS_LIKE
    """,
    "bool": """
        CAST EQUAL LOGICAL_NOT NOT_EQUAL REDUCE_ALL SLICE STRIDED_SLICE
    """,
}
_TFLM_TYPES = {dtype: _names(ops + _TFLM_ALL) for dtype, ops in _TFLM_OPS.items()}
register(
    Target(
        name="tflm",
        help="TensorFlow Lite for Microcontrollers with its reference kernels",
        title="TensorFlow Lite for Microcontrollers",
        short_title="TFLite Micro",
        schemes=("int8", "int16x8", "float32"),
        io_types=("int8", "uint8", "int16", "float32"),
        integer_ops=_TFLM_TYPES["int8"] | _TFLM_TYPES["int16"],
        float_ops=_TFLM_TYPES["float32"],
        index_ops=_TFLM_TYPES["int32"] | _TFLM_TYPES["int64"] | _TFLM_TYPES["bool"],
        ops_by_type=_TFLM_TYPES,
        int32_index_ops=_names("""
            ARG_MAX ARG_MIN CUMSUM EMBEDDING_LOOKUP EXPAND_DIMS GATHER GATHER_ND MEAN PAD PADV2 REDUCE_MAX REDUCE_MIN
            RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SHAPE SPACE_TO_BATCH_ND STRIDED_SLICE SUM TRANSPOSE
        """),
        per_channel_dense=False,
        per_channel_dense_reason="its kernels support them only since September 2024, and many vendors' kernels do not",
        source="measured on tflite-micro 0.dev20261023182759 (its Python wheel); pull requests 2602 and 2673 (dense "
        "weights)",
    )
)


def _measured_on_gpu() -> dict[str, Any]:
    """Return the facts of the target `gpu` that benchmarks/gpu_ops.py has measured, as arguments of `Target`."""
    record = json.loads(Path(__file__).with_name("gpu_ops.json").read_text())

    def results(result: str, dtype: str, scheme: str) -> frozenset[str]:
        ops = [op for op, by_type in record["ops"].items() if by_type.get(dtype, [""])[0] == result]
        for layer, by_scheme in record["layers"].items():
            if result == "right" == by_scheme.get(scheme, [""])[0]:
                ops += record["ops_of_layers"][layer][scheme]
        return frozenset(ops)

    right = {"int8": results("right", "int8", "int8"), "float32": results("right", "float32", "float32")}
    right |= {dtype: results("right", dtype, "") for dtype in ("int32", "bool")}
    hybrid = results("right", "", "dynamic_range") & _names("CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV")
    runs = [scheme for scheme, (result, _) in record["layers"]["conv1x1_stride1"].items() if result == "right"]
    return {
        "schemes": tuple(sorted(runs, key=SCHEMES.index)),
        "integer_ops": right["int8"],
        "float_ops": right["float32"],
        "hybrid_ops": hybrid,
        "index_ops": right["int32"] | right["bool"],
        "ops_by_type": right,
        "wrong_ops": {dtype: results("wrong", dtype, "") - right[dtype] for dtype in right},
        "max_versions": {op: version for op, version in record["versions"].items() if version},
        "max_axes": record["max_axes"],
        "removes_axes": record["layers"]["first_row"]["float32"][0] == "right",
        "source": f"measured on ai-edge-litert {record['ai_edge_litert']}, WebGPU on SwiftShader, {record['date']}",
    }


register(
    Target(
        name="gpu",
        help="LiteRT's GPU accelerator: what its WebGPU form computes right, measured with one op or layer at a time",
        title="LiteRT's GPU accelerator",
        short_title="GPU",
        io_types=("int8", "uint8", "float32"),
        strided_pointwise=False,
        exact_average_pools=False,
        unread_results=False,
        **_measured_on_gpu(),
    )
)

# RSQRT and others are mapped only for float.
_NNAPI_VERSIONS = _versions("""
    ADD=2 ARG_MAX=2 ARG_MIN=2 AVERAGE_POOL_2D=2 BATCH_TO_SPACE_ND=2 CAST=1 CONCATENATION=2 CONV_2D=3
    DEPTHWISE_CONV_2D=3 DEQUANTIZE=2 EQUAL=2 EXPAND_DIMS=1 FULLY_CONNECTED=5 GATHER=2 GREATER=2 GREATER_EQUAL=2
    L2_NORMALIZATION=2 LEAKY_RELU=1 LESS=2 LESS_EQUAL=2 LOGICAL_AND=1 LOGICAL_NOT=1 LOGICAL_OR=1 LOGISTIC=2 MAXIMUM=3
    MAX_POOL_2D=2 MEAN=2 MINIMUM=3 MUL=2 NOT_EQUAL=2 PACK=2 PAD=2 PADV2=2 PRELU=1 QUANTIZE=2 REDUCE_ANY=2 REDUCE_MAX=2
    REDUCE_MIN=2 RELU=2 RELU6=2 RELU_N1_TO_1=2 RESHAPE=1 RESIZE_BILINEAR=3 RESIZE_NEAREST_NEIGHBOR=3 SELECT=2 SLICE=2
    SOFTMAX=2 SPACE_TO_BATCH_ND=2 SPACE_TO_DEPTH=2 SPLIT=3 SQUEEZE=1 STRIDED_SLICE=2 SUB=3 TANH=2 TILE=1 TOPK_V2=2
    TRANSPOSE=2 TRANSPOSE_CONV=3
""")
# Ops for which the delegate accepts int32, or does not check the type.
_NNAPI_INDEX = _names("""
    ADD ARG_MAX ARG_MIN BATCH_TO_SPACE_ND CAST EQUAL EXPAND_DIMS FILL GATHER GREATER GREATER_EQUAL LESS LESS_EQUAL
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR MAXIMUM MINIMUM MUL NEG NOT_EQUAL PACK REDUCE_ANY SELECT SLICE SPACE_TO_BATCH_ND
    SPLIT SQUEEZE STRIDED_SLICE SUB TILE TOPK_V2 TRANSPOSE
""")
_NNAPI_FLOAT_VERSIONS = _versions("""
    ABS=1 DIV=1 ELU=1 EXP=1 FILL=1 FLOOR=1 L2_POOL_2D=1 LOCAL_RESPONSE_NORMALIZATION=1 LOG=1 LOG_SOFTMAX=1 NEG=2 POW=1
    REDUCE_PROD=1 RSQRT=1 SIN=1 SQRT=1 SUM=1
""")
register(
    Target(
        name="nnapi",
        help="Android's Neural Networks API 1.3 and later, through TFLite's delegate",
        title="the NNAPI delegate",
        deprecated="Android 15 deprecates NNAPI. Use the target xnnpack for the CPU of phones, or gpu for their GPU",
        short_title="NNAPI",
        schemes=("int8", "float32"),
        io_types=("int8", "uint8", "float32"),
        integer_ops=frozenset(_NNAPI_VERSIONS) | _names("DEPTH_TO_SPACE HARD_SWISH"),
        float_ops=frozenset(_NNAPI_VERSIONS) | frozenset(_NNAPI_FLOAT_VERSIONS) | _names("DEPTH_TO_SPACE HARD_SWISH"),
        index_ops=_NNAPI_INDEX,
        max_versions=_NNAPI_VERSIONS | _NNAPI_FLOAT_VERSIONS,
        per_channel_dense=False,
        per_channel_dense_reason="FULLY_CONNECTED of the Neural Networks API requires one scale (LiteRT issue 3596)",
        source="tensorflow/lite/delegates/nnapi/nnapi_delegate.cc at 002e5f4, for Android 11 (NNAPI 1.3) and later",
    )
)

register(
    Target(
        name="edgetpu",
        help="Coral's Edge TPU; full int8 only",
        title="the Edge TPU",
        short_title="Edge TPU",
        schemes=("int8",),
        io_types=("int8", "uint8", "float32"),
        integer_ops=_names("""
            ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION
            LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6
            RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT
            SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
        """),
        per_channel_dense=False,
        per_channel_dense_reason="the last release of its compiler (16.0 of 2021) predates such weights",
        custom_ops=_names("edgetpu-custom-op"),
        full_uint8=True,
        only_inner_axes=True,
        max_softmax=16_000,
        source="coral.ai/docs/edgetpu/models-intro: model requirements, supported operations",
    )
)
