# SPDX-License-Identifier: Apache-2.0
"""What a single tf_keras layer is to the flatbuffer, whatever stands around it."""

from typing import Any

from tfq.compression._tfmot import tfmot_symbols
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import facts_of

# Operations whose output has the input's scale: those of Keras 3, and TensorFlow's own in a Keras 2 model.
_OPERATIONS_NAMES = """
    core.Slice core.Unstack einops.Rearrange image.CropImages image.Resize nn.DepthToSpace nn.SpaceToDepth
    numpy.BroadcastTo numpy.ExpandDims numpy.Flip numpy.GetItem numpy.Max numpy.Min numpy.Moveaxis numpy.Ravel
    numpy.Repeat numpy.Reshape numpy.Rot90 numpy.Split numpy.Squeeze numpy.Swapaxes numpy.Take numpy.Tile
    numpy.Transpose
    __operators__.getitem broadcast_to compat.v1.transpose expand_dims gather image.resize math.reduce_max
    math.reduce_min nn.depth_to_space nn.space_to_depth repeat reshape reverse slice split squeeze strided_slice
    tile transpose unstack
"""
_OPERATIONS_PASS_ON = frozenset(_OPERATIONS_NAMES.split())

# All that they read and give has one scale in a flatbuffer: the constant beside a tensor as well.
_OPERATIONS_JOIN_NAMES = """
    numpy.Append numpy.Clip numpy.Concatenate numpy.Hstack numpy.Maximum numpy.Minimum numpy.Pad numpy.Roll numpy.Stack
    numpy.Vstack numpy.Where
    clip_by_value concat math.maximum math.minimum pad roll stack where
"""
_OPERATIONS_JOIN = frozenset(_OPERATIONS_JOIN_NAMES.split())
# Those of them that cut one tensor off, where numbers are the other.
_CUTS_NAMES = "numpy.Clip numpy.Maximum numpy.Minimum clip_by_value math.maximum math.minimum"
_CUTS = frozenset(_CUTS_NAMES.split())


def kind(layer: Any) -> str:
    """The name of the layer's class, where it is Keras' own or a user's."""
    return type(layer).__name__


def passes_on(layer: Any) -> bool:
    """Whether its output has the input's scale and zero point in a flatbuffer, or is the input itself.

    layer: in the wrapper of a QAT model or out of it.
    """
    inner = tfmot_symbols.wrapped(layer)
    facts = facts_of(inner)
    if facts.qat == "global_average":
        # The mean of one value is no op where the shape stays. A layer that is used with several shapes has no one.
        shape = getattr(layer, "input_shape", None) or ()
        places = shape[2:] if inner.data_format == "channels_first" else shape[1:-1]
        return inner.keepdims and bool(places) and all(size == 1 for size in places)
    if operation := operation_of(inner):
        return operation in _OPERATIONS_PASS_ON and all(len(node.keras_inputs) == 1 for node in layer.inbound_nodes)
    is_identity = kind(inner) == "Activation" and activation_name(inner) == "linear"
    return facts.qat in ("passes_range", "passes_mask", "averages") or is_identity


def joins(layer: Any) -> bool:
    """Whether all that it reads and gives has one scale and zero point in a flatbuffer. layer: as for `passes_on`."""
    inner = tfmot_symbols.wrapped(layer)
    return facts_of(inner).qat == "shares_range" or operation_of(inner) in _OPERATIONS_JOIN


def cuts_off(layer: Any) -> bool:
    """Whether the layer cuts one tensor off at numbers: TFLite's ops before it take its range, and saturate there."""
    return operation_of(layer) in _CUTS and all(len(node.keras_inputs) == 1 for node in layer.inbound_nodes)


def operation_of(layer: Any) -> str:
    """The operation, of Keras 3 or TensorFlow, that the layer computes; "" of all else."""
    if kind(layer) == "KerasOperation":
        return str(layer.operation)
    return str(layer.get_config()["function"]) if kind(layer) in ("TFOpLambda", "SlicingOpLambda") else ""


def is_fusable_relu(layer: Any) -> bool:
    """Whether the layer is a ReLU, which TFLite's ops take into themselves.

    One that ends elsewhere than at 6 does so in ops behind it, in which each code stays what it was.
    """
    if kind(layer) == "ReLU":
        return float(layer.negative_slope) == 0 and float(layer.threshold) == 0
    return kind(layer) == "Activation" and activation_name(layer) in ("relu", "relu6")


def averages(layer: Any) -> bool:
    """Whether the layer computes between the codes of what it gets, and rounds to them again."""
    if operation_of(layer) in ("image.Resize", "image.resize"):
        return True  # to the nearest, it may round as well: nothing is lost
    return facts_of(layer).qat == "averages" or getattr(layer, "interpolation", "") == "bilinear"


def relu_cap(layer: Any) -> float | None:
    """Where a ReLU ends, if it does."""
    if kind(layer) == "ReLU":
        return None if layer.max_value is None else float(layer.max_value)
    return 6.0 if activation_name(layer) == "relu6" else None


def activation_name(layer: Any) -> str | None:
    """The name of the function behind the layer's own work; None where it has no place for one."""
    activation = getattr(layer, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def is_swish(layer: Any) -> bool:
    """Whether the layer's activation is Keras' own: a user's function of that name may be another."""
    import tensorflow as tf

    return getattr(layer, "activation", None) in (import_tf_keras().activations.swish, tf.nn.silu)


def is_rescaling(layer: Any, scale: float, offset: float) -> bool:
    """Whether the layer multiplies by `scale` and adds `offset`, and that is all."""
    values = scale_and_offset(layer)
    return values is not None and all(abs(a - b) < 1e-6 for a, b in zip(values, (scale, offset), strict=True))


def scale_and_offset(layer: Any) -> tuple[float, float] | None:
    """What a Rescaling, or an operator applied to a tensor and a number, multiplies by and adds; None of all else."""
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
    """Whether a normalization has a factor for each channel."""
    axis = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return list(axis) in ([-1], [len(layer.output.shape) - 1])


def is_real(tensor: Any) -> bool:
    """Whether the tensor is of floats."""
    return bool(tensor.dtype.is_floating) if hasattr(tensor.dtype, "is_floating") else "float" in str(tensor.dtype)


def keras_tensors(nested: Any) -> list[Any]:
    """The outputs of layers among what a layer was called with."""
    import tensorflow as tf

    return [item for item in tf.nest.flatten(nested) if hasattr(item, "_keras_history")]
