# SPDX-License-Identifier: Apache-2.0
"""Calls of `keras.ops` on one small image, and a Keras 3 graph of operations rebuilt node by node."""

import numpy as np

from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.keras_bridge.operations.translate import translate_operation

SHAPE = (8, 8, 4)
_RNG = np.random.default_rng(7)
ROW = _RNG.normal(size=(4,)).astype("float32")
KERNEL = _RNG.normal(size=(4, 3)).astype("float32")
FILTER = (_RNG.normal(size=(3, 3, 4, 2)) / 4).astype("float32")

# {name: (f(ops, x), the tf_keras layer that it becomes)}; x: NHWC, in (0.1, 1.9). K: a KerasOperation.
K = "KerasOperation"

# TFLite has int8 kernels for all that these lower to.
INT8 = {
    "add": (lambda o, x: x + o.relu(x - 1.0), "Add"),
    "add_scalar": (lambda o, x: x + 1.5, "Rescaling"),
    "add_one_array": (lambda o, x: o.add(np.float32(2), x), "Rescaling"),
    "add_constant": (lambda o, x: x + ROW, K),
    "add_other_rank": (lambda o, x: x + o.mean(x, axis=(1, 2, 3), keepdims=True)[0], K),
    "add_broadcast": (lambda o, x: x + o.mean(x, axis=(1, 2), keepdims=True), "Add"),
    "subtract": (lambda o, x: x - o.tanh(x), "Subtract"),
    "subtract_scalar": (lambda o, x: x - 0.5, "Rescaling"),
    "subtract_from": (lambda o, x: 2.0 - x, "Rescaling"),
    "subtract_constant": (lambda o, x: o.subtract(ROW, x), K),
    "multiply": (lambda o, x: x * o.sigmoid(x), "Multiply"),
    "multiply_scalar": (lambda o, x: 0.25 * x, "Rescaling"),
    "multiply_constant": (lambda o, x: x * ROW, K),
    "divide_scalar": (lambda o, x: x / 3.0, "Rescaling"),
    "divide_constant": (lambda o, x: x / (np.abs(ROW) + 1), K),
    "negative": (lambda o, x: -x, "Rescaling"),
    "square": (lambda o, x: o.square(x), K),
    "power_two": (lambda o, x: (x - 0.5) ** 2, K),
    "absolute": (lambda o, x: o.absolute(x - 1.0), K),
    "exp": (lambda o, x: o.exp(x), "Activation"),
    "log": (lambda o, x: o.log(x), K),
    "squareplus": (lambda o, x: o.squareplus(x), K),
    "rms": (lambda o, x: o.rms_normalization(x, ROW), K),
    "elu": (lambda o, x: o.elu(x - 1.0), "ELU"),
    "layer_normalization": (lambda o, x: o.layer_normalization(x, ROW, ROW), K),
    "rsqrt": (lambda o, x: o.rsqrt(x), K),
    "maximum": (lambda o, x: o.maximum(x, o.tanh(x)), "Maximum"),
    "maximum_zero": (lambda o, x: o.maximum(x - 0.75, 0.0), "ReLU"),
    "maximum_scalar": (lambda o, x: o.maximum(x, 1.0), K),
    "minimum": (lambda o, x: o.minimum(x, o.tanh(x)), "Minimum"),
    "minimum_constant": (lambda o, x: o.minimum(x, ROW), K),
    "clip_from_zero": (lambda o, x: o.clip(x - 0.5, 0.0, 1.0), "ReLU"),
    "clip": (lambda o, x: o.clip(x, 0.5, 1.0), K),
    "relu": (lambda o, x: o.relu(x - 1.0), "ReLU"),
    "relu6": (lambda o, x: o.relu6(5.0 * x), "ReLU"),
    "leaky_relu": (lambda o, x: o.leaky_relu(x - 1.0, 0.1), "LeakyReLU"),
    "gelu": (lambda o, x: o.gelu(x - 1.125, approximate=False), "Activation"),
    "gelu_approximate": (lambda o, x: o.gelu(x - 0.875), K),
    "sigmoid": (lambda o, x: o.sigmoid(x), "Activation"),
    "hard_sigmoid": (lambda o, x: o.hard_sigmoid(4.0 * x - 4.0), K),
    "hard_silu": (lambda o, x: o.hard_silu(4.0 * x - 4.0), K),
    "hard_tanh": (lambda o, x: o.hard_tanh(2.0 * x - 2.0), K),
    "silu": (lambda o, x: o.silu(x - 1.0), "Activation"),
    "tanh": (lambda o, x: o.tanh(x), "Activation"),
    "softmax": (lambda o, x: o.softmax(x), "Activation"),
    "softmax_axis": (lambda o, x: o.softmax(x, axis=1), K),
    "log_softmax": (lambda o, x: o.log_softmax(x), K),
    "glu": (lambda o, x: o.glu(x), K),
    "reshape": (lambda o, x: o.reshape(x, (-1, 16, 16)), "Reshape"),
    "reshape_inferred": (lambda o, x: o.reshape(x, (1, 64, -1)), K),
    "expand_dims": (lambda o, x: o.expand_dims(x[..., 0], -1), "Reshape"),
    "squeeze": (lambda o, x: o.squeeze(x[:, :1], 1), "Reshape"),
    "transpose": (lambda o, x: o.transpose(x, (0, 3, 1, 2)), "Permute"),
    "swapaxes": (lambda o, x: o.swapaxes(x, 1, -1), "Permute"),
    "moveaxis": (lambda o, x: o.moveaxis(x, 1, 3), "Permute"),
    "concatenate": (lambda o, x: o.concatenate([x, o.tanh(x)], axis=-1), "Concatenate"),
    "concatenate_twice": (lambda o, x: o.concatenate([x, x], axis=1), K),
    "stack": (lambda o, x: o.stack([x, o.tanh(x)], axis=1), K),
    "split": (lambda o, x: o.split(x, 2, axis=-1)[1], K),
    "split_at": (lambda o, x: o.split(x, [3], axis=2)[0], K),
    "unstack": (lambda o, x: o.unstack(x, axis=3)[2], K),
    "slice": (lambda o, x: x[:, 1:7:2, -5:, :3], K),
    "slice_index": (lambda o, x: x[:, 3], K),
    "slice_new_axis": (lambda o, x: x[:, None, ..., 1], K),
    "slice_reversed": (lambda o, x: x[:, ::-1], K),
    "flip": (lambda o, x: o.flip(x, axis=2), K),
    "roll": (lambda o, x: o.roll(x, 3, axis=1), K),
    "take": (lambda o, x: o.take(x, [2, 0], axis=-1), K),
    "tile": (lambda o, x: o.tile(x, (1, 2, 1, 1)), K),
    "repeat": (lambda o, x: o.repeat(x, 2, axis=1), K),
    "pad_hw": (lambda o, x: o.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))), "ZeroPadding2D"),
    "pad_value": (lambda o, x: o.pad(x, ((0, 0), (1, 0), (0, 0), (0, 2)), constant_values=0.5), K),
    "pad_reflect": (lambda o, x: o.pad(x, ((0, 0), (2, 2), (1, 1), (0, 0)), mode="reflect"), K),
    "mean_hw": (lambda o, x: o.mean(x, axis=(1, 2)), "GlobalAveragePooling2D"),
    "mean_channel": (lambda o, x: o.mean(x, axis=-1, keepdims=True), K),
    "sum": (lambda o, x: o.sum(x, axis=(2, 3)), K),
    "max_hw": (lambda o, x: o.max(x, axis=(-3, -2), keepdims=True), "GlobalMaxPooling2D"),
    "max": (lambda o, x: o.max(x, axis=-1), K),
    "min": (lambda o, x: o.min(x, axis=1, keepdims=True), K),
    "variance": (lambda o, x: o.var(x, axis=-1, keepdims=True), K),
    "matmul_constant": (lambda o, x: o.matmul(x, KERNEL), K),
    "matmul": (lambda o, x: o.matmul(x[:, 0], o.transpose(x[:, 1], (0, 2, 1))), K),
    "einsum": (lambda o, x: o.einsum("bhwc,bhvc->bhwv", x, o.tanh(x)), K),
    "einsum_constant": (lambda o, x: o.einsum("bhwc,cd->bhwd", x, 2 * KERNEL), K),
    "dot_constant": (lambda o, x: o.dot(x, 3 * KERNEL), K),
    "conv": (lambda o, x: o.conv(x, FILTER, padding="same"), K),
    "max_pool": (lambda o, x: o.max_pool(x, 2), "MaxPooling2D"),
    "average_pool": (lambda o, x: o.average_pool(x, (2, 4), strides=2, padding="same"), "AveragePooling2D"),
    "resize_double": (lambda o, x: o.image.resize(x, (16, 24)), "UpSampling2D"),
    "resize_nearest": (lambda o, x: o.image.resize(x, (16, 16), interpolation="nearest"), "UpSampling2D"),
    "resize": (lambda o, x: o.image.resize(x, (5, 11)), K),
    "depth_to_space": (lambda o, x: o.depth_to_space(x, 2), K),
    "space_to_depth": (lambda o, x: o.space_to_depth(x, 2), K),
    "rot90": (lambda o, x: o.rot90(x, axes=(1, 2)), K),
    "where": (lambda o, x: o.where(x > 1.0, x, o.tanh(x)), K),
    "copy": (lambda o, x: o.copy(x * 0.3), "Activation"),
    "cast": (lambda o, x: o.cast(x * 0.6, "float32"), "Activation"),
    "divide": (lambda o, x: x / (o.tanh(x) + 1.0), K),
    "divide_by": (lambda o, x: 2.0 / x, K),
    "sqrt": (lambda o, x: o.sqrt(x), K),
    "reciprocal": (lambda o, x: o.reciprocal(x), K),
    "softplus": (lambda o, x: o.softplus(x), "Activation"),
    "softsign": (lambda o, x: o.softsign(x), "Activation"),
    "selu": (lambda o, x: o.selu(x - 1.0), "Activation"),
    "std": (lambda o, x: o.std(x, axis=-1), K),
    "logsumexp": (lambda o, x: o.logsumexp(x, axis=-1), K),
    "norm": (lambda o, x: o.norm(x, axis=-1), K),
    "prod": (lambda o, x: o.prod(x, axis=-1), K),
    "greater": (lambda o, x: x > 1.0, K),
    "top_k": (lambda o, x: o.top_k(x, 2)[0], K),
    "celu": (lambda o, x: o.celu(x - 1.0), K),
    "mish": (lambda o, x: x * o.tanh(o.softplus(x)), "Multiply"),
    "logical": (lambda o, x: o.logical_and(x > 0.5, x < 1.0), K),
    "argmax": (lambda o, x: o.argmax(x, axis=-1), K),
    "argmin": (lambda o, x: o.argmin(x - 1.0, axis=1, keepdims=True), K),
    "one_hot": (lambda o, x: o.one_hot(o.argmax(x, axis=1), 8), K),
}

# TFLite has no int8 kernel for one of their ops and computes it in float.
FLOAT = {
    "power": (lambda o, x: x**1.5, K),
    "sin": (lambda o, x: o.sin(x), K),
    "cos": (lambda o, x: o.cos(x), K),
    "floor": (lambda o, x: o.floor(3.0 * x), K),
    "ceil": (lambda o, x: o.ceil(3.0 * x), K),
    "round": (lambda o, x: o.round(3.0 * x), K),
    "sign": (lambda o, x: o.sign(x - 1.0), K),
    "normalize": (lambda o, x: o.normalize(x), K),
    "cumsum": (lambda o, x: o.cumsum(x, axis=1), K),
    "cast_int": (lambda o, x: o.cast(3.0 * x, "int32"), K),
    "mod": (lambda o, x: x % 0.75, K),
}

# The converter refuses the complete model: Erf and ResizeBicubic have no TFLite op.
NO_TFLITE = {
    "erf": (lambda o, x: o.erf(x), K),
    "resize_bicubic": (lambda o, x: o.image.resize(x, (5, 5), interpolation="bicubic"), K),
}


def model_of(cases):
    """Return a Keras 3 model with one output per case; each has a separate input, a multiple of the image.

    Otherwise TFLite's converter would merge equal ops of two cases, and its quantizer is unreliable if many splits have
    one input.
    """
    keras = import_keras()
    image = keras.Input(SHAPE, name="image")
    own = [image * (1 + number / 256) for number in range(len(cases))]
    return keras.Model(image, [call(keras.ops, x) for (call, _), x in zip(cases.values(), own, strict=True)])


def rebuilt(model):
    """Return the tf_keras twin of a Keras 3 model of inputs and operations, and the layer class of each output."""
    tf_keras = import_tf_keras()
    twin_of, inputs, number = {}, [], 0
    for tensor in model.inputs:
        twin_of[id(tensor)] = tf_keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name)
        inputs.append(twin_of[id(tensor)])

    def twin(node):
        for parent in node.parent_nodes:
            if id(parent.outputs[0]) not in twin_of:
                twin(parent)
        args, kwargs = node.arguments.convert(lambda value: twin_of.get(id(value), value))
        nonlocal number
        number += 1
        outputs = translate_operation(node.operation, args, kwargs, f"operation_{number}")
        for mine, theirs in zip(flat(outputs), node.outputs, strict=True):
            twin_of[id(theirs)] = mine

    for tensor in model.outputs:
        if id(tensor) not in twin_of:
            history = tensor._keras_history
            twin(history.operation._inbound_nodes[history.node_index])
    outputs = [twin_of[id(tensor)] for tensor in model.outputs]
    kinds = [type(tensor.node.layer).__name__ for tensor in outputs]
    return tf_keras.Model(inputs, outputs), kinds


def flat(nest):
    return [leaf for item in nest for leaf in flat(item)] if isinstance(nest, (tuple, list)) else [nest]
