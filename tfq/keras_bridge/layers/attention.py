# SPDX-License-Identifier: Apache-2.0
"""MultiHeadAttention and Keras 3's GroupedQueryAttention as the layers that they are made of, which tfmot can wrap.

As one layer, called with several tensors and with four kernels inside, it can be pruned but not fake-quantized. Its
projections are Dense layers here, and its two products operations of their own, as they are in the flatbuffer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import Arrays, Making, Translation
from tfq.keras_bridge.layers.config import dtype_of
from tfq.keras_bridge.layers.own import own_layers
from tfq.keras_bridge.operations.keras_operation import is_graph_tensor, layer_of_tensors
from tfq.keras_bridge.untranslatable import Untranslatable

# What the constructor of tf_keras' layer is given, as far as it decides what is computed or learned.
_OPTIONS = (
    *("num_heads", "key_dim", "value_dim", "dropout", "use_bias", "output_shape", "attention_axes"),
    *("kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint"),
)
# Of Keras 3 alone: a sigmoid of the query that gates what comes out; heads that share keys and values, so many in turn.
GATE = "use_gate"
GROUPED = ("head_dim", "num_query_heads", "num_key_value_heads")
# Of tf_keras alone: a mask is added to the scores, so that a row that is masked throughout is the rounding of -1e9, and
# even where scores are below 32. to_tf_keras compares, and keeps attention whole where it differs.
_ADDS = "adds_masks"
# The same for a kernel of any shape.
_REGULARIZERS = ("L1", "L2", "L1L2")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_TENSORS = ("query", "value", "key")
# Masks, with the axis that they lack of those of queries and keys; 0: none.
_MASKS = {"query_mask": -1, "value_mask": -2, "key_mask": -2, "attention_mask": 0}


@dataclass(frozen=True, kw_only=True)
class Called:
    """What an attention layer is called with: tensors is (query, value, key).

    masks: by the name of its argument, tensors of the graph. causal: no query attends to later keys. constant: a mask
    that is no tensor. is_soft: whether that one has other values than 0 and 1.
    """

    tensors: tuple[Any, Any, Any]
    masks: Mapping[str, Any]
    causal: bool
    constant: Any = None
    is_soft: bool = False

    @property
    def is_masked(self) -> bool:
        """Whether positions are excluded."""
        return bool(self.masks) or self.causal or self.constant is not None

    @property
    def form(self) -> tuple[Any, ...]:
        """What must be the same at each call of the layer."""
        return sorted(self.masks), self.causal, self.constant


def grouped_options(config: dict[str, Any]) -> dict[str, Any]:
    """What `attention_in_parts` takes, of the options of Keras 3's GroupedQueryAttention."""
    other_words = {"num_heads": config["num_query_heads"], "key_dim": config["head_dim"]}
    return {**dict.fromkeys(_OPTIONS), **config, **other_words}


def options_of(layer: Any) -> dict[str, Any]:
    """Of a built MultiHeadAttention of tf_keras: what `attention_in_parts` takes."""
    return {
        "dtype": dtype_of(layer),
        "trainable": layer.trainable,
        _ADDS: True,
        **{name: getattr(layer, f"_{name}") for name in _OPTIONS},
    }


def plain_call(options: dict[str, Any], arguments: Arguments | None, *, implicit: bool = False) -> Called | None:
    """Return what the layer is called with; None where it must stay whole.

    options: by the words of tf_keras' constructor. arguments: the args and kwargs of its call; None: of several calls,
    or nobody knows. A mask that travels with a tensor (`explicit_masks` makes most of these arguments), a mask of
    tf_keras' layer that is not of zeros and ones, scores that are given as well, other axes, and what training holds to
    a kernel's shape keep it whole: a plain one is projections, products, masks and a softmax over one axis.
    implicit: whether masks that travel with tensors are ignored.
    """
    called = _called(arguments, implicit=implicit) if arguments else None
    if called is None or any(len(tensor.shape) != 3 or tensor.shape[-1] is None for tensor in called.tensors):
        return None
    if options.get(_ADDS) and (called.is_soft or any(_is_float(mask) for mask in called.masks.values())):
        return None
    shared = options.get("num_key_value_heads") or options["num_heads"]
    if shared != options["num_heads"] and len(getattr(called.masks.get("attention_mask"), "shape", ())) > 3:
        return None  # a mask for each head
    one_axis = tuple(options["attention_axes"] or (1,)) == (1,) and np.size(options["output_shape"] or 1) == 1
    regularizers = [options[name] for name in ("kernel_regularizer", "bias_regularizer")]
    others = [options[name] for name in ("activity_regularizer", "kernel_constraint", "bias_constraint")]
    shapeless = all(item is None or type(item).__name__ in _REGULARIZERS for item in regularizers)
    return called if one_axis and shapeless and not any(others) else None


def attention_in_parts(layer: Any, options: dict[str, Any], making: Making) -> Translation | None:
    """A built attention layer of either Keras, where it is a plain one (`plain_call`).

    query, key and value (batch, places, channels) are projected to (batch, heads, places, dim); softmax of query times
    key, over the square root of its dim, weighs the values (Vaswani et al. 2017, "Attention is all you need"). Heads
    that share a key (Ainslie et al. 2023, "GQA") stand below each other: (batch, heads of keys, places * sharing, dim).
    """
    called = plain_call(options, making.arguments)
    if called is None:
        return None
    query, value, key = called.tensors
    layers, part = import_tf_keras().layers, making.part
    heads, key_dim = options["num_heads"], options["key_dim"]
    groups = options.get("num_key_value_heads") or heads
    sharing, value_dim = heads // groups, options["value_dim"] or key_dim
    own = {name: options[name] for name in ("use_bias", "kernel_regularizer", "bias_regularizer", "dtype", "trainable")}
    gated = {"gate": heads * value_dim} if options.get(GATE) else {}
    units = int(np.ravel(options["output_shape"] or query.shape[-1])[0])
    sizes = {"query": heads * key_dim, "key": groups * key_dim, **gated, "value": groups * value_dim, "output": units}
    projections = {
        name: layers.Dense(size, "sigmoid" if name == "gate" else None, name=part(name), **own)
        for name, size in sizes.items()
    }
    scaled = layers.Rescaling(1 / math.sqrt(key_dim), name=part("query_scaled"))
    apart = {
        name: layers.Reshape((_places(tensor), groups, dim), name=part(f"{name}_heads"))
        for name, tensor, dim in (
            ("query", query, sharing * key_dim),
            ("key", key, key_dim),
            ("value", value, value_dim),
        )
    }
    # Of a key, (heads, dim, places): it is the right side of the product.
    orders = {"query": (2, 1, 3), "key": (2, 3, 1), "value": (2, 1, 3), "output": (2, 1, 3)}
    turned = {name: layers.Permute(order, name=part(f"{name}_turned")) for name, order in orders.items()}
    below, paired = [], []
    if sharing > 1:
        rows = -1 if _places(query) == -1 else _places(query) * sharing
        below = [layers.Reshape((groups, rows, key_dim), name=part("query_shared"))]
        paired = [layers.Reshape((groups, _places(query), sharing * value_dim), name=part("output_shared"))]
    scores, weighed = (layer_of_tensors("numpy.Matmul", 2, part(name)) for name in ("scores", "weighed"))
    softmax = layers.Activation("softmax", name=part("softmax"))
    masking, zeroing = _masking(options, called, sharing, part)
    dropped = [layers.Dropout(options["dropout"], name=part("dropout"))] if options["dropout"] else []
    together = layers.Reshape((_places(query), heads * value_dim), name=part("output_heads"))
    gating = [layers.Multiply(name=part("gated"))] if gated else []

    def call(args: tuple, kwargs: dict) -> Any:
        now = _called((args, kwargs))
        if now is None or now.form != called.form:
            raise Untranslatable("is called with a mask in one place and without in another: make it two")
        provided, masks = dict(zip(_TENSORS, now.tensors, strict=True)), list(now.masks.values())
        projected = {name: projections[name](tensor) for name, tensor in provided.items()}
        projected["query"] = scaled(projected["query"])
        by_head = {name: turned[name](apart[name](tensor)) for name, tensor in projected.items()}
        weights = scores([_through(below, by_head["query"]), by_head["key"]])
        for layer in masking:
            weights = layer([weights, *masks])
        weights = softmax(weights)
        for layer in zeroing:
            weights = layer([weights, *masks])
        weights = _through(dropped, weights)
        y = together(turned["output"](_through(paired, weighed([weights, by_head["value"]]))))
        for layer in gating:
            y = layer([y, projections["gate"](provided["query"])])
        return projections["output"](y)

    carriers = tuple(projections.values())

    def forward(arrays: Arrays) -> Arrays:
        ours = [variable for carrier in carriers for variable in carrier.weights]
        return [array.reshape(variable.shape) for array, variable in zip(arrays, ours, strict=True)]

    def back(arrays: Arrays) -> Arrays:
        return [array.reshape(variable.shape) for array, variable in zip(arrays, layer.weights, strict=True)]

    turning = (*apart.values(), *turned.values(), *below, *paired)
    others = (scaled, *turning, scores, *masking, softmax, *zeroing, *dropped, weighed, together, *gating)
    return Translation(layers=(*carriers, *others), carriers=len(carriers), call=call, forward=forward, back=back)


def _masking(options: dict[str, Any], called: Called, sharing: int, part: Any) -> tuple[list[Any], list[Any]]:
    """The layers that mask the scores, and the weights where Keras 3 does (with a dropout).

    Only there a row that is masked throughout is 0. In a causal mask each query has itself.
    """
    if not called.is_masked:
        return [], []
    own, constant = own_layers(), called.constant
    axes = [_MASKS[name] for name in called.masks]
    config = {"causal": called.causal, "constant": constant, "axes": axes, "sharing": sharing}
    masking = [own.MaskedScores(**config, name=part("masked"))]
    zeroes = options["dropout"] and not options.get(_ADDS) and (called.masks or constant is not None)
    return masking, [own.MaskedWeights(**config, name=part("masked_weights"))] if zeroes else []


def _called(arguments: Arguments, *, implicit: bool = False) -> Called | None:
    """What the layer is called with, where that is no more than tensors and masks, and no mask travels with them."""
    args, kwargs = arguments
    provided = {**dict(zip(_TENSORS, args, strict=False)), **kwargs}
    query, value, key = (provided.pop(name, None) for name in _TENSORS)
    tensors = (query, value, value if key is None else key)
    causal = bool(provided.pop("use_causal_mask", False))
    masks = {name: provided.pop(name) for name in _MASKS if provided.get(name) is not None}
    constant = None if is_graph_tensor(masks.get("attention_mask")) else masks.pop("attention_mask", None)
    is_more = len(args) > len(_TENSORS) or any(item is not None and item is not False for item in provided.values())
    if is_more or query is None or value is None or not all(map(is_graph_tensor, masks.values())):
        return None
    if not implicit and any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors):
        return None
    is_soft = False
    if constant is not None:
        values = np.asarray(constant)
        is_soft = bool(np.any(values != values.astype(bool)))
        constant = values.astype(bool).astype(int).tolist()
    return Called(tensors=tensors, masks=masks, causal=causal, constant=constant, is_soft=is_soft)


def _is_float(tensor: Any) -> bool:
    return "float" in str(getattr(tensor.dtype, "name", tensor.dtype))


def _through(layers: list[Any], tensor: Any) -> Any:
    for layer in layers:
        tensor = layer(tensor)
    return tensor


def _places(tensor: Any) -> int:
    """What Reshape takes for the second axis."""
    return -1 if tensor.shape[1] is None else int(tensor.shape[1])
