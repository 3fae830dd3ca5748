# SPDX-License-Identifier: Apache-2.0
"""Facts about a single tf_keras layer that determine how TFLite quantizes it, independent of its neighbors."""

from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import facts_of

# Operations whose output has the input's scale: those of Keras 3, and TensorFlow functions in a Keras 2 model.
_PRESERVING_NAMES = """
    core.Slice core.Unstack einops.Rearrange image.CropImages image.Resize nn.DepthToSpace nn.SpaceToDepth
    numpy.BroadcastTo numpy.ExpandDims numpy.Flip numpy.GetItem numpy.Max numpy.Min numpy.Moveaxis numpy.Ravel
    numpy.Repeat numpy.Reshape numpy.Rot90 numpy.Split numpy.Squeeze numpy.Swapaxes numpy.Take numpy.Tile
    numpy.Transpose
    __operators__.getitem broadcast_to compat.v1.transpose expand_dims gather image.resize math.reduce_max
    math.reduce_min nn.depth_to_space nn.space_to_depth repeat reshape reverse slice split squeeze strided_slice
    tile transpose unstack
"""
_PRESERVING = frozenset(_PRESERVING_NAMES.split())

# Operations whose inputs and output all have one scale in a flatbuffer, including constant operands.
_SHARING_NAMES = """
    numpy.Append numpy.Clip numpy.Concatenate numpy.Hstack numpy.Maximum numpy.Minimum numpy.Pad numpy.Roll numpy.Stack
    numpy.Vstack numpy.Where
    clip_by_value concat math.maximum math.minimum pad roll stack where
"""
_SHARING = frozenset(_SHARING_NAMES.split())
# Those of them that clip a tensor if the other operands are numbers.
_CLIPPING_NAMES = "numpy.Clip numpy.Maximum numpy.Minimum clip_by_value math.maximum math.minimum"
_CLIPPING = frozenset(_CLIPPING_NAMES.split())


def kind(layer: Any) -> str:
    """Return the name of the layer's class."""
    return type(layer).__name__


def preserves_range(layer: Any) -> bool:
    """Check whether the output has the scale and zero point of the input in a flatbuffer, or is the input itself.

    Args:
        layer: The layer, with or without the wrapper of a QAT model.
    """
    inner = tfmot_symbols.wrapped(layer)
    facts = facts_of(inner)
    if facts.qat == "global_average":
        # The mean of one value is not an op if it keeps the shape. input_shape is missing if several shapes occur.
        shape = getattr(layer, "input_shape", None) or ()
        spatial = shape[2:] if inner.data_format == "channels_first" else shape[1:-1]
        return inner.keepdims and bool(spatial) and all(size == 1 for size in spatial)
    if pads_with_infinity(inner):
        return True
    if operation := operation_of(inner):
        return operation in _PRESERVING and all(len(node.keras_inputs) == 1 for node in layer.inbound_nodes)
    is_identity = kind(inner) == "Activation" and activation_name(inner) == "linear"
    return facts.qat in ("passes_range", "passes_mask", "averages") or is_identity


def pads_with_infinity(layer: Any) -> bool:
    """Check whether the layer pads with an infinite constant, as before a max pooling.

    Its range is that of its input. In the flatbuffer, the constant is the end of that range.
    """
    if operation_of(layer) != "numpy.Pad":
        return False
    return any(np.isinf(value) for value in layer.constants if isinstance(value, (float, np.floating)))


def shares_range(layer: Any) -> bool:
    """Check whether all inputs and outputs have one scale and zero point in a flatbuffer.

    Args:
        layer: The layer, with or without the wrapper of a QAT model.
    """
    inner = tfmot_symbols.wrapped(layer)
    if pads_with_infinity(inner):
        return False
    return facts_of(inner).qat == "shares_range" or operation_of(inner) in _SHARING


def clips(layer: Any) -> bool:
    """Check whether the layer clips one tensor to constants. The TFLite op before it takes the range and saturates."""
    return operation_of(layer) in _CLIPPING and all(len(node.keras_inputs) == 1 for node in layer.inbound_nodes)


def operation_of(layer: Any) -> str:
    """Return the Keras 3 operation or TensorFlow function that the layer computes; "" for other layers."""
    if kind(layer) == "KerasOperation":
        return str(layer.operation)
    return str(layer.get_config()["function"]) if kind(layer) in ("TFOpLambda", "SlicingOpLambda") else ""


def is_fusable_relu(layer: Any) -> bool:
    """Check whether the layer is a ReLU that TFLite fuses into the op before it.

    A limit other than 6 becomes separate ops after it, which do not change quantized values.
    """
    if kind(layer) == "ReLU":
        return float(layer.negative_slope) == 0 and float(layer.threshold) == 0
    return kind(layer) == "Activation" and activation_name(layer) in ("relu", "relu6")


def interpolates(layer: Any) -> bool:
    """Check whether the layer computes values between the quantized values of its input, and rounds them."""
    if operation_of(layer) in ("image.Resize", "image.resize"):
        return True  # for nearest-neighbor interpolation, rounding again changes nothing
    return facts_of(layer).qat == "averages" or getattr(layer, "interpolation", "") == "bilinear"


def relu_cap(layer: Any) -> float | None:
    """Return the upper limit of a ReLU, or None without a limit."""
    if kind(layer) == "ReLU":
        return None if layer.max_value is None else float(layer.max_value)
    return 6.0 if activation_name(layer) == "relu6" else None


def activation_name(layer: Any) -> str | None:
    """Return the name of the layer's activation function; None if it has no such attribute."""
    activation = getattr(layer, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def is_swish(layer: Any) -> bool:
    """Check whether the layer's activation is Keras' swish. A user's function of that name may differ."""
    import tensorflow as tf

    return getattr(layer, "activation", None) in (import_tf_keras().activations.swish, tf.nn.silu)


def is_rescaling(layer: Any, scale: float, offset: float) -> bool:
    """Check whether the layer computes exactly x * scale + offset."""
    values = scale_and_offset(layer)
    return values is not None and all(abs(a - b) < 1e-6 for a, b in zip(values, (scale, offset), strict=True))


def scale_and_offset(layer: Any) -> tuple[float, float] | None:
    """Return the scalar (scale, offset) of a Rescaling, or of an addition or multiplication with a number.

    Returns None for other layers.
    """
    if kind(layer) == "Rescaling":
        values = (layer.scale, layer.offset)
    elif kind(layer) == "TFOpLambda" and len(layer.inbound_nodes) == 1:
        other = layer.inbound_nodes[0].call_kwargs.get("y")
        values = {
            "__operators__.add": (1.0, other),
            "math.add": (1.0, other),
            "__operators__.mul": (other, 0.0),
            "math.multiply": (other, 0.0),
        }.get(operation_of(layer), (None, None))
    else:
        return None
    scale, offset = values
    return (
        (float(scale), float(offset)) if isinstance(scale, (int, float)) and isinstance(offset, (int, float)) else None
    )


def normalizes_last_axis(layer: Any) -> bool:
    """Check whether a normalization works along the last axis only, with one factor per channel."""
    axis = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return list(axis) in ([-1], [len(layer.inbound_nodes[0].keras_inputs[0].shape) - 1])


def only_reader(layer: Any) -> Any:
    """Return the layer that reads all outputs of `layer`; None if several layers read them, or one of them twice.

    If `layer` is called several times, the reader must read each of these calls in a separate call. It may also read
    other layers.
    """
    readers = {id(node): node for node in layer.outbound_nodes}.values()
    reader = next(iter(readers)).outbound_layer if readers else None
    calls = len(layer.inbound_nodes)
    if reader is None or len(readers) != calls or len(layer.outbound_nodes) != calls:
        return None
    if any(node.outbound_layer is not reader for node in readers):
        return None
    histories = [tensor._keras_history for node in readers for tensor in node.keras_inputs]
    read = {history.node_index for history in histories if history.layer is layer}
    return reader if len(read) == calls else None


def is_real(tensor: Any) -> bool:
    """Check whether the tensor has a float dtype."""
    return bool(tensor.dtype.is_floating) if hasattr(tensor.dtype, "is_floating") else "float" in str(tensor.dtype)


def keras_tensors(nested: Any) -> list[Any]:
    """Return the symbolic Keras tensors in a nested structure, such as the arguments of a layer call."""
    import tensorflow as tf

    return [item for item in tf.nest.flatten(nested) if hasattr(item, "_keras_history")]
