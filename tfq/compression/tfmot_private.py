# SPDX-License-Identifier: Apache-2.0
"""Every private symbol of tfmot and tf_keras that compression touches, and nothing else.

Read in tensorflow-model-optimization 0.8.1 and tf_keras 2.21.0. A test asks for each of them by name.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from tfq.keras_bridge import import_tfmot

_CORE = "tensorflow_model_optimization.python.core"

# What QuantizeAwareActivation takes (quantize_aware_activation.py), and what an Activation layer may hold
# (Default8BitActivationQuantizeConfig.get_output_quantizers).
FUSED_ACTIVATIONS = frozenset(("softmax", "sigmoid", "tanh", "gelu", "linear", "relu", "swish"))
LAYER_ACTIVATIONS = FUSED_ACTIVATIONS | {"relu6"}


def _module(name: str) -> ModuleType:
    import_tfmot()
    return importlib.import_module(f"{_CORE}.{name}")


def is_graph_model(model: Any) -> bool:
    """Whether a tf_keras model is functional or a built sequential one, so that its layers are all that it does."""
    return bool(getattr(model, "_is_graph_network", False))


def prunable_weight_names(layer: Any) -> tuple[str, ...] | None:
    """Attributes of the weights that tfmot prunes in a tf_keras layer; None when it knows no such layer."""
    registry = _module("sparsity.keras.prune_registry").PruneRegistry
    if hasattr(layer, "get_prunable_weights"):
        return ("get_prunable_weights",)
    if not registry.supports(layer):
        return None
    return ("kernel", "recurrent_kernel") if registry._is_rnn_layer(layer) else tuple(registry._weight_names(layer))


def pruning_step(wrapper: Any) -> int:
    """Training steps that a PruneLowMagnitude layer has seen; -1 and 0 are none."""
    return int(wrapper.pruning_step.numpy())


def pruning_variables(wrapper: Any) -> list[tuple[Any, Any]]:
    """(weight, mask) of each pruned weight of a PruneLowMagnitude layer."""
    return [(weight, mask) for weight, mask, _ in wrapper.pruning_vars]


def quantizable(layer: Any) -> bool:
    """Whether tfmot's default 8-bit scheme knows this class of layer."""
    registry = _module("quantization.keras.default_8bit.default_8bit_quantize_registry")
    return registry.Default8BitQuantizeRegistry().supports(layer)


def preserves_sparsity(layer: Any) -> bool:
    """Whether the prune-preserving scheme can quantize this layer."""
    registry = _module("quantization.keras.collab_opts.prune_preserve.prune_preserve_quantize_registry")
    return registry.PrunePreserveQuantizeRegistry.supports(layer)


def quantize_scheme(preserve_sparsity: bool) -> Any:
    """tfmot's default 8-bit scheme, or the one that multiplies kernels by the mask of what is not zero now."""
    if preserve_sparsity:
        scheme = _module("quantization.keras.collab_opts.prune_preserve.default_8bit_prune_preserve_quantize_scheme")
        return scheme.Default8BitPrunePreserveQuantizeScheme()
    return _module("quantization.keras.default_8bit.default_8bit_quantize_scheme").Default8BitQuantizeScheme()


def moving_average_places(model: Any) -> list[tuple[Any, str, Any]]:
    """(owner, attribute, quantizer) of each moving-average quantizer in a QAT model.

    `setattr(owner, attribute, other)` replaces it, where the attribute "_output_quantizers" wants a list.
    """
    average = _module("quantization.keras.quantizers").MovingAverageQuantizer
    places: list[tuple[Any, str, Any]] = []
    for layer in model.layers:
        if isinstance(layer, _module("quantization.keras.quantize_layer").QuantizeLayer):
            places.append((layer, "quantizer", layer.quantizer))
        elif isinstance(layer, _module("quantization.keras.quantize_wrapper").QuantizeWrapper):
            places.extend((held, "quantizer", held.quantizer) for held in layer._quantize_activations)
            if layer._output_quantizers:
                places.append((layer, "_output_quantizers", layer._output_quantizers[0]))
    return [place for place in places if isinstance(place[2], average)]


def moving_average_quantize() -> Callable[[Any, Any, dict[str, Any], Any], Any]:
    """One training step of a MovingAverageQuantizer with a decay of our own in place of its fixed 0.999.

    Called with the quantizer, the tensor, the quantizer's variables, and the decay (a scalar tensor).
    """
    quantize = _module("quantization.keras.quant_ops").MovingAvgQuantize

    def step(quantizer: Any, inputs: Any, variables: dict[str, Any], decay: Any) -> Any:
        return quantize(
            inputs,
            variables["min_var"],
            variables["max_var"],
            ema_decay=decay,
            is_training=True,
            num_bits=quantizer.num_bits,
            per_channel=quantizer.per_axis,
            symmetric=quantizer.symmetric,
            narrow_range=quantizer.narrow_range,
        )

    return step


@contextlib.contextmanager
def fake_quant_as_identity() -> Iterator[None]:
    """Within, eager calls of QAT models do not quantize. Not for calls that a tf.function has traced before."""
    quant_ops = _module("quantization.keras.quant_ops")
    names = ("_FakeQuantWithMinMaxVars", "FixedQuantize")
    before = {name: getattr(quant_ops, name) for name in names}
    try:
        for name in names:
            setattr(quant_ops, name, lambda inputs, *args, **kwargs: inputs)
        yield
    finally:
        for name, function in before.items():
            setattr(quant_ops, name, function)


@contextlib.contextmanager
def automatic_names_from_zero(avoid: Iterable[str]) -> Iterator[None]:
    """Within, layers that name themselves do so as in a fresh process, but past the names in `avoid`.

    tfmot makes such layers (quantize_layer, the halves of a SeparableConv2D). Their names should not depend on what
    this process built before; and where one is taken, tfmot rebuilds the model for ever.
    """
    from tf_keras.src import backend

    counters = backend.get_default_graph_uid_map()
    before = dict(counters)
    counters.clear()
    try:
        for name in avoid:
            prefix, _, number = name.rpartition("_")
            for key, used in ((name, 0), (prefix, int(number) if number.isdecimal() else -1)):
                counters["", key] = max(counters["", key], used + 1)
        yield
    finally:
        counters.clear()
        counters.update(before)
