# SPDX-License-Identifier: Apache-2.0
"""Split MultiHeadAttention and Keras 3's GroupedQueryAttention into layers that tfmot can wrap.

As one layer, which has several input tensors and four kernels, attention can be pruned but not fake-quantized. After
the split, its projections are Dense layers and its two matrix products are separate operations, as in the flatbuffer.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import Arrays, Translation, TranslationContext
from tfq.keras_bridge.layers.config import dtype_of
from tfq.keras_bridge.layers.tfq_layers import tfq_layer_classes
from tfq.keras_bridge.operations.keras_operation import is_graph_tensor, layer_of_tensors
from tfq.keras_bridge.untranslatable import Untranslatable

# Arguments of tf_keras' constructor that change what the layer computes or learns.
_OPTIONS = (
    *("num_heads", "key_dim", "value_dim", "dropout", "use_bias", "output_shape", "attention_axes"),
    *("kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint"),
)
# Options that only Keras 3 has: a sigmoid of the query that gates the output, and the numbers of heads of a layer in
# which several consecutive query heads share a key and value head.
GATE = "use_gate"
GROUPED = ("head_dim", "num_query_heads", "num_key_value_heads")
# Set for tf_keras' layer, which adds masks to the scores. In a row that is masked completely, the result is what
# remains after rounding to the precision of -1e9, which is uniform if the scores are below 32. to_tf_keras compares the
# outputs and does not split attention if they differ.
_ADDS_MASKS = "adds_masks"
# Regularizers that are independent of the shape of the kernel.
_REGULARIZERS = ("L1", "L2", "L1L2")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_TENSORS = ("query", "value", "key")
# Mask arguments -> the axis of (queries, keys) that the mask does not have; 0: it has both.
_MASKS = {"query_mask": -1, "value_mask": -2, "key_mask": -2, "attention_mask": 0}


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The tensors and masks of one call of an attention layer.

    Attributes:
        tensors: (query, value, key).
        masks: Mask argument -> tensor of the graph.
        causal: Whether a query cannot attend to later keys.
        constant: A mask that is not a tensor of the graph.
        is_soft: Whether `constant` has values other than 0 and 1.
    """

    tensors: tuple[Any, Any, Any]
    masks: Mapping[str, Any]
    causal: bool
    constant: Any = None
    is_soft: bool = False

    @property
    def is_masked(self) -> bool:
        """Whether any position is masked."""
        return bool(self.masks) or self.causal or self.constant is not None

    @property
    def form(self) -> tuple[Any, ...]:
        """The properties that must be equal in all calls of the layer."""
        return sorted(self.masks), self.causal, self.constant


def grouped_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of Keras 3's GroupedQueryAttention as the options of `split_attention`."""
    renamed = {"num_heads": config["num_query_heads"], "key_dim": config["head_dim"]}
    return {**dict.fromkeys(_OPTIONS), **config, **renamed}


def attention_options(layer: Any) -> dict[str, Any]:
    """Return the options of `split_attention` for a built MultiHeadAttention of tf_keras."""
    return {
        "dtype": dtype_of(layer),
        "trainable": layer.trainable,
        _ADDS_MASKS: True,
        **{name: getattr(layer, f"_{name}") for name in _OPTIONS},
    }


def splittable_call(
    options: dict[str, Any], arguments: Arguments | None, *, implicit: bool = False
) -> AttentionCall | None:
    """Return the call of an attention layer, or None if the layer cannot be split.

    A layer can be split if it consists of projections, products, masks and a softmax over one axis. It cannot be split
    if
        - a mask is attached to one of its tensors (`explicit_masks` turns most of these into arguments),
        - a mask of tf_keras' layer has values other than zeros and ones,
        - it also returns its scores,
        - it attends over other axes than the sequence,
        - a regularizer or constraint depends on the shape of a kernel.

    Args:
        options: Options by the names of tf_keras' constructor.
        arguments: The args and kwargs of the layer's call. None: it has several calls, or they are unknown.
        implicit: Whether to ignore masks that are attached to tensors.
    """
    called = _attention_call(arguments, implicit=implicit) if arguments else None
    if called is None or any(len(tensor.shape) != 3 or tensor.shape[-1] is None for tensor in called.tensors):
        return None
    if options.get(_ADDS_MASKS) and (called.is_soft or any(_is_float(mask) for mask in called.masks.values())):
        return None
    key_heads = options.get("num_key_value_heads") or options["num_heads"]
    if key_heads != options["num_heads"] and len(getattr(called.masks.get("attention_mask"), "shape", ())) > 3:
        return None  # a separate mask for each head
    has_one_axis = tuple(options["attention_axes"] or (1,)) == (1,) and np.size(options["output_shape"] or 1) == 1
    regularizers = [options[name] for name in ("kernel_regularizer", "bias_regularizer")]
    others = [options[name] for name in ("activity_regularizer", "kernel_constraint", "bias_constraint")]
    is_shape_independent = all(item is None or type(item).__name__ in _REGULARIZERS for item in regularizers)
    return called if has_one_axis and is_shape_independent and not any(others) else None


def split_attention(layer: Any, options: dict[str, Any], context: TranslationContext) -> Translation | None:
    """Return the layers of a built attention layer of either Keras, or None if `splittable_call` is None.

    Query, key and value (batch, length, channels) are projected to (batch, heads, length, dim). The softmax of query
    times key, divided by the square root of dim, weights the values (Vaswani et al. 2017, "Attention is all you need").
    Query heads that share a key head (Ainslie et al. 2023, "GQA") are concatenated along the length: (batch, key heads,
    length * query heads per key head, dim).
    """
    called = splittable_call(options, context.arguments)
    if called is None:
        return None
    query, value, key = called.tensors
    layers, part = import_tf_keras().layers, context.part
    heads, key_dim = options["num_heads"], options["key_dim"]
    key_heads = options.get("num_key_value_heads") or heads
    group_size, value_dim = heads // key_heads, options["value_dim"] or key_dim
    shared = {
        name: options[name] for name in ("use_bias", "kernel_regularizer", "bias_regularizer", "dtype", "trainable")
    }
    gated = {"gate": heads * value_dim} if options.get(GATE) else {}
    units = int(np.ravel(options["output_shape"] or query.shape[-1])[0])
    sizes = {
        "query": heads * key_dim,
        "key": key_heads * key_dim,
        **gated,
        "value": key_heads * value_dim,
        "output": units,
    }
    projections = {
        name: layers.Dense(size, "sigmoid" if name == "gate" else None, name=part(name), **shared)
        for name, size in sizes.items()
    }
    scaled = layers.Rescaling(1 / math.sqrt(key_dim), name=part("query_scaled"))
    head_reshapes = {
        name: layers.Reshape((_sequence_length(tensor), key_heads, dim), name=part(f"{name}_heads"))
        for name, tensor, dim in (
            ("query", query, group_size * key_dim),
            ("key", key, key_dim),
            ("value", value, value_dim),
        )
    }
    # A key becomes (heads, dim, length), because it is the right side of the product.
    orders = {"query": (2, 1, 3), "key": (2, 3, 1), "value": (2, 1, 3), "output": (2, 1, 3)}
    transposes = {name: layers.Permute(order, name=part(f"{name}_transposed")) for name, order in orders.items()}
    grouping, ungrouping = [], []
    if group_size > 1:
        rows = -1 if _sequence_length(query) == -1 else _sequence_length(query) * group_size
        grouping = [layers.Reshape((key_heads, rows, key_dim), name=part("query_grouped"))]
        ungrouping = [
            layers.Reshape((key_heads, _sequence_length(query), group_size * value_dim), name=part("output_ungrouped"))
        ]
    scores, weighted = (layer_of_tensors("numpy.Matmul", 2, part(name)) for name in ("scores", "weighted_values"))
    softmax = layers.Activation("softmax", name=part("softmax"))
    masking, zeroing = _masking(options, called, group_size, part)
    dropout = [layers.Dropout(options["dropout"], name=part("dropout"))] if options["dropout"] else []
    merge_heads = layers.Reshape((_sequence_length(query), heads * value_dim), name=part("output_heads"))
    gates = [layers.Multiply(name=part("gated"))] if gated else []

    def call(args: tuple, kwargs: dict) -> Any:
        current = _attention_call((args, kwargs))
        if current is None or current.form != called.form:
            raise Untranslatable("its calls have different masks. Use one attention layer for each kind of mask")
        provided, masks = dict(zip(_TENSORS, current.tensors, strict=True)), list(current.masks.values())
        projected = {name: projections[name](tensor) for name, tensor in provided.items()}
        projected["query"] = scaled(projected["query"])
        by_head = {name: transposes[name](head_reshapes[name](tensor)) for name, tensor in projected.items()}
        weights = scores([_through(grouping, by_head["query"]), by_head["key"]])
        for layer in masking:
            weights = layer([weights, *masks])
        weights = softmax(weights)
        for layer in zeroing:
            weights = layer([weights, *masks])
        weights = _through(dropout, weights)
        y = merge_heads(transposes["output"](_through(ungrouping, weighted([weights, by_head["value"]]))))
        for layer in gates:
            y = layer([y, projections["gate"](provided["query"])])
        return projections["output"](y)

    carriers = tuple(projections.values())
    reshapes = (*head_reshapes.values(), *transposes.values(), *grouping, *ungrouping)
    others = (scaled, *reshapes, scores, *masking, softmax, *zeroing, *dropout, weighted, merge_heads, *gates)
    forward, back = _weight_mapping(layer, carriers)
    return Translation(layers=(*carriers, *others), carriers=len(carriers), call=call, forward=forward, back=back)


def _weight_mapping(layer: Any, carriers: tuple[Any, ...]) -> tuple[Callable[[Arrays], Arrays], ...]:
    """Return `forward` and `back` of the Translation, which reshape each weight."""

    def forward(arrays: Arrays) -> Arrays:
        projected = [variable for carrier in carriers for variable in carrier.weights]
        return [array.reshape(variable.shape) for array, variable in zip(arrays, projected, strict=True)]

    def back(arrays: Arrays) -> Arrays:
        return [array.reshape(variable.shape) for array, variable in zip(arrays, layer.weights, strict=True)]

    return forward, back


def _masking(options: dict[str, Any], called: AttentionCall, group_size: int, part: Any) -> tuple[list[Any], list[Any]]:
    """Return the layers that mask the scores, and the layers that mask the weights.

    Keras 3 masks the weights too if the layer has a dropout; only then a row that is masked completely is 0. A causal
    mask never masks a row completely, because each query attends to its own position.
    """
    if not called.is_masked:
        return [], []
    layers, constant = tfq_layer_classes(), called.constant
    axes = [_MASKS[name] for name in called.masks]
    config = {"causal": called.causal, "constant": constant, "axes": axes, "group_size": group_size}
    masking = [layers.MaskedScores(**config, name=part("masked"))]
    zeroes = options["dropout"] and not options.get(_ADDS_MASKS) and (called.masks or constant is not None)
    return masking, [layers.MaskedWeights(**config, name=part("masked_weights"))] if zeroes else []


def _attention_call(arguments: Arguments, *, implicit: bool = False) -> AttentionCall | None:
    """Return the call if its arguments are only tensors and masks, and no mask is attached to a tensor."""
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
    return AttentionCall(tensors=tensors, masks=masks, causal=causal, constant=constant, is_soft=is_soft)


def _is_float(tensor: Any) -> bool:
    return "float" in str(getattr(tensor.dtype, "name", tensor.dtype))


def _through(layers: list[Any], tensor: Any) -> Any:
    for layer in layers:
        tensor = layer(tensor)
    return tensor


def _sequence_length(tensor: Any) -> int:
    """Return the sequence length as Reshape's second axis: -1 if it is unknown."""
    return -1 if tensor.shape[1] is None else int(tensor.shape[1])
