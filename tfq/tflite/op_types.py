# SPDX-License-Identifier: Apache-2.0
"""The role of each tensor of an op (data, weights, bias, index ...), and the type that an op computes in.

Slots count the inputs (or outputs) of an op from 0. Source: the builtin op definitions of tflite/core/kernels.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from tfq.tflite.records import Model, Op, Subgraph


def _table(text: str) -> dict[str, frozenset[int]]:
    """Parse "ADD=0,1 ..." into {"ADD": {0, 1}, ...}."""
    pairs = (entry.split("=") for entry in text.split())
    return {name: frozenset(map(int, slots.split(","))) for name, slots in pairs}


def names(text: str) -> frozenset[str]:
    """Return the words of `text`."""
    return frozenset(text.split())


# Axes, shapes, paddings, sizes, positions, conditions, counts.
INDEX_INPUTS = _table("""
    RESHAPE=1 TRANSPOSE=1 PAD=1 PADV2=1 MIRROR_PAD=1 MEAN=1 SUM=1 REDUCE_PROD=1 REDUCE_MAX=1 REDUCE_MIN=1 REDUCE_ANY=0,1
    REDUCE_ALL=0,1 GATHER=1 GATHER_ND=1 SCATTER_ND=0,2 STRIDED_SLICE=1,2,3 SLICE=1,2 EXPAND_DIMS=1 TILE=1 ARG_MAX=1
    ARG_MIN=1 RESIZE_BILINEAR=1 RESIZE_NEAREST_NEIGHBOR=1 TRANSPOSE_CONV=0 CONV_3D_TRANSPOSE=0 SPLIT=0 SPLIT_V=1,2
    TOPK_V2=1 ONE_HOT=0,1 FILL=0 BROADCAST_TO=1 BROADCAST_ARGS=0,1 BATCH_TO_SPACE_ND=1,2 SPACE_TO_BATCH_ND=1,2
    REVERSE_V2=1 REVERSE_SEQUENCE=1 EMBEDDING_LOOKUP=0 SELECT=0 SELECT_V2=0 WHERE=0 CUMSUM=1 DYNAMIC_UPDATE_SLICE=2
    SPARSE_TO_DENSE=0,1 SEGMENT_SUM=1 UNSORTED_SEGMENT_SUM=1,2 UNSORTED_SEGMENT_MAX=1,2 UNSORTED_SEGMENT_MIN=1,2
    UNSORTED_SEGMENT_PROD=1,2 IF=0 LOGICAL_AND=0,1 LOGICAL_OR=0,1 LOGICAL_NOT=0 NON_MAX_SUPPRESSION_V4=2
    NON_MAX_SUPPRESSION_V5=2
""")
INDEX_OUTPUTS = _table("""
    ARG_MAX=0 ARG_MIN=0 SHAPE=0 RANK=0 WHERE=0 TOPK_V2=1 UNIQUE=1 EQUAL=0 NOT_EQUAL=0 LESS=0 LESS_EQUAL=0 GREATER=0
    GREATER_EQUAL=0 LOGICAL_AND=0 LOGICAL_OR=0 LOGICAL_NOT=0 REDUCE_ANY=0 REDUCE_ALL=0 BROADCAST_ARGS=0
    NON_MAX_SUPPRESSION_V4=0,1 NON_MAX_SUPPRESSION_V5=0,2 BUCKETIZE=0
""")
BIAS_INPUTS = _table("""
    CONV_2D=2 DEPTHWISE_CONV_2D=2 FULLY_CONNECTED=2 TRANSPOSE_CONV=3 CONV_3D=2 CONV_3D_TRANSPOSE=3 SVDF=3
    LSTM=12,13,14,15,17 UNIDIRECTIONAL_SEQUENCE_LSTM=12,13,14,15,17
""")
WEIGHT_INPUTS = _table("""
    CONV_2D=1 DEPTHWISE_CONV_2D=1 FULLY_CONNECTED=1 TRANSPOSE_CONV=1 CONV_3D=1 CONV_3D_TRANSPOSE=1 BATCH_MATMUL=0,1
    EMBEDDING_LOOKUP=1 SVDF=1 LSTM=1,2,3,4,5,6,7,8,16 UNIDIRECTIONAL_SEQUENCE_LSTM=1,2,3,4,5,6,7,8,16
""")
# The slots of data, weights and bias of ops that accumulate products, in the steps of data scale * weight scale.
WEIGHTED_SLOTS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
# Inputs with more bits than the data (16 in int8 ops): the state between time steps, the coefficients of a layer
# normalization, and SVDF's time weights.
WIDE_INPUTS = _table("""
    LSTM=19,20,21,22,23 UNIDIRECTIONAL_SEQUENCE_LSTM=19,20,21,22,23 SVDF=2,4
""")

# Ops that change the shape or the order of one tensor's values, or take a slice of them, and do nothing else.
RESHAPING_OPS = names("EXPAND_DIMS RESHAPE SLICE SQUEEZE STRIDED_SLICE TRANSPOSE")
# Ops whose output consists of values of one input and nothing else, each of them any number of times.
COPYING_OPS = RESHAPING_OPS | names("GATHER REVERSE_V2 TILE")
# Ops with one data input whose int8 input and output share one scale: they copy values, select extremes, or pad.
# TensorFlow's quantizer may take the scale from either side. Passes that follow values through a graph add ops to these
# three sets where they need more.
SAME_SCALE_OPS = COPYING_OPS | names("""
    BATCH_TO_SPACE_ND DEPTH_TO_SPACE MAX_POOL_2D MIRROR_PAD PAD REDUCE_MAX REDUCE_MIN RESIZE_NEAREST_NEIGHBOR
    SPACE_TO_BATCH_ND SPACE_TO_DEPTH
""")

# Ops that move or select values -> the inputs with these values. Their integer kernels copy quantized values, so these
# inputs and the outputs need the same scale and zero point. For JOINING_OPS these are all inputs.
MOVING_INPUTS = _table("""
    RESHAPE=0 SQUEEZE=0 EXPAND_DIMS=0 TRANSPOSE=0 SLICE=0 STRIDED_SLICE=0 GATHER=0 GATHER_ND=0 TILE=0 BROADCAST_TO=0
    PAD=0 MIRROR_PAD=0 REVERSE_V2=0 REVERSE_SEQUENCE=0 DEPTH_TO_SPACE=0 SPACE_TO_DEPTH=0 BATCH_TO_SPACE_ND=0
    SPACE_TO_BATCH_ND=0 UNPACK=0 SPLIT=1 SPLIT_V=0 MAX_POOL_2D=0 AVERAGE_POOL_2D=0 RESIZE_BILINEAR=0
    RESIZE_NEAREST_NEIGHBOR=0 REDUCE_MAX=0 REDUCE_MIN=0 SELECT=1,2 SELECT_V2=1,2 DYNAMIC_UPDATE_SLICE=0,1
""")
JOINING_OPS = names("CONCATENATION PACK MAXIMUM MINIMUM")

# Ops with one output -> the slots that their int8 and int16 kernels copy to it, quantized value by quantized value.
COPIED_SLOTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        names("""
    BATCH_TO_SPACE_ND BROADCAST_TO DEPTH_TO_SPACE EXPAND_DIMS GATHER GATHER_ND MIRROR_PAD PAD RESHAPE
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SLICE SPACE_TO_BATCH_ND SPACE_TO_DEPTH SQUEEZE STRIDED_SLICE TILE TRANSPOSE
    """),
        (0,),
    ),
    **dict.fromkeys(("SELECT", "SELECT_V2"), (1, 2)),
    "DYNAMIC_UPDATE_SLICE": (0, 1),
    "PADV2": (0, 2),
}

# Output scale and zero point that the integer kernels of an op assume, by type.
FIXED_OUTPUT_SCALES: dict[str, dict[str, tuple[float, int]]] = {
    "LOGISTIC": {"int8": (2.0**-8, -128), "int16": (2.0**-15, 0)},
    "SOFTMAX": {"int8": (2.0**-8, -128), "int16": (2.0**-15, 0)},
    "TANH": {"int8": (2.0**-7, 0), "int16": (2.0**-15, 0)},
    "L2_NORMALIZATION": {"int8": (2.0**-7, 0)},
    "LOG_SOFTMAX": {"int8": (2.0**-4, 127)},
}

# The axis of a weight's output channels, along which it may have one scale per channel.
CHANNEL_AXES = {
    "CONV_2D": 0,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
    "DEPTHWISE_CONV_2D": -1,
    "CONV_3D": -1,
    "GATHER": -1,
}

# Ops that also serve shape and index arithmetic: unquantized integers are valid in them if none of their data is
# quantized. Control flow accepts all types.
INTEGER_OPS = names("""
    ADD SUB MUL DIV FLOOR_DIV FLOOR_MOD MINIMUM MAXIMUM NEG ABS SIGN SQUARED_DIFFERENCE POW PACK UNPACK CONCATENATION
    STRIDED_SLICE SLICE GATHER GATHER_ND SCATTER_ND RESHAPE SQUEEZE EXPAND_DIMS FILL SELECT SELECT_V2 CAST RANGE
    REDUCE_PROD REDUCE_MAX REDUCE_MIN SUM TILE BROADCAST_TO TRANSPOSE CUMSUM SPLIT SPLIT_V SHAPE RANK ONE_HOT UNIQUE
    HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS
    WHERE BUCKETIZE BITCAST
    EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL PAD PADV2 REVERSE_V2 ZEROS_LIKE DYNAMIC_UPDATE_SLICE
    TOPK_V2 ARG_MAX ARG_MIN BITWISE_XOR RIGHT_SHIFT
""")
CONTROL_FLOW = frozenset({"IF", "WHILE", "CALL_ONCE"})

# Custom ops that have a kernel without the application's help -> the part of LiteRT that has it. All of them compute on
# float32. Measured with one-op models on ai-edge-litert 2.3.0; a test repeats it.
CUSTOM_KERNELS = {
    **dict.fromkeys(names("AudioSpectrogram Mfcc NumericVerify TFLite_Detection_PostProcess"), "LiteRT"),
    **dict.fromkeys(names("Convolution2DTransposeBias MaxPoolingWithArgmax2D MaxUnpooling2D"), "XNNPACK"),
}
# Custom ops that a device's compiler writes -> the device. What they compute is not visible in the file.
COMPILED_OPS = {"edgetpu-custom-op": "the Edge TPU", "ethos-u": "the Ethos-U NPU"}

# Kernels that compute only on real values: an int32 in them is a bias, an index, or an error.
REAL_OPS = names("""
    CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV CONV_3D CONV_3D_TRANSPOSE BATCH_MATMUL AVERAGE_POOL_2D
    MAX_POOL_2D L2_POOL_2D SOFTMAX LOG_SOFTMAX LOGISTIC TANH RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU PRELU ELU
    GELU HARD_SWISH EXP LOG SQRT RSQRT SIN COS L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION MEAN RESIZE_BILINEAR LSTM
    UNIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_LSTM RNN UNIDIRECTIONAL_SEQUENCE_RNN SVDF EMBEDDING_LOOKUP
""")

# Ops that TensorFlow 2.21's post-training quantizer left float in a one-op model with a representative dataset.
LEFT_FLOAT_BY_QUANTIZER = names("""
    SIN COS SQUARE POW FLOOR CEIL ROUND ELU NEG FLOOR_DIV FLOOR_MOD LOCAL_RESPONSE_NORMALIZATION SIGN ATAN2 CONV_3D CAST
    RFFT2D COMPLEX_ABS SEGMENT_SUM
""")

INDEX, BIAS, WEIGHT, DATA = "index", "bias", "weight", "data"
# WIDE: see WIDE_INPUTS. RANGE: an intermediate tensor, which has no values, only the scale of a value within the op.
WIDE, RANGE = "wide", "range"


def roles(op: Op) -> list[tuple[str, int, int, str]]:
    """Return (place, slot, tensor, role) of each tensor of `op`; place is "input", "output" or "intermediate"."""
    tables = {INDEX: INDEX_INPUTS, BIAS: BIAS_INPUTS, WEIGHT: WEIGHT_INPUTS, WIDE: WIDE_INPUTS}
    slots = {slot: role for role, table in tables.items() for slot in table.get(op.name, ())}
    results = [("input", slot, tensor, slots.get(slot, DATA)) for slot, tensor in enumerate(op.inputs) if tensor >= 0]
    index = INDEX_OUTPUTS.get(op.name, frozenset())
    results += [("output", slot, tensor, INDEX if slot in index else DATA) for slot, tensor in enumerate(op.outputs)]
    results += [("intermediate", slot, tensor, RANGE) for slot, tensor in enumerate(op.intermediates) if tensor >= 0]
    return results


def moved_inputs(name: str, inputs: Sequence[int]) -> list[int]:
    """Return those of an op's `inputs` whose values it moves or selects; none for other ops."""
    slots = range(len(inputs)) if name in JOINING_OPS else MOVING_INPUTS.get(name, frozenset())
    return [int(index) for slot, index in enumerate(inputs) if slot in slots]


def op_types(model: Model, name: Callable[[Op], str]) -> dict[str, dict[str, int]]:
    """Return {op: {type: count}}, with the names of ops that `name` returns.

    The type is that of the op's output, such as "int8"; if its weights have another type, "float32 with int8 weights".
    An op without outputs has the type "none".
    """
    results: dict[str, Counter[str]] = {}
    for graph in model.subgraphs:
        for op in graph.ops:
            results.setdefault(name(op), Counter())[_type(graph, op)] += 1
    return {op: dict(types) for op, types in results.items()}


def _type(graph: Subgraph, op: Op) -> str:
    touched = [(place, graph.tensors[index], role) for place, _, index, role in roles(op)]
    outputs = [tensor.dtype for place, tensor, role in touched if place == "output" and role in (DATA, INDEX)]
    if not outputs:
        return "none"
    weights = [tensor.dtype for _, tensor, role in touched if role == WEIGHT and tensor.is_constant]
    others = list(dict.fromkeys(dtype for dtype in weights if dtype != outputs[0]))
    return f"{outputs[0]} with {'/'.join(others)} weights" if others else outputs[0]
