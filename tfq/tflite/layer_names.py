# SPDX-License-Identifier: Apache-2.0
"""Find the Keras layer of an op from the names that conversion leaves on its tensors.

The name of a converted tensor lists the TensorFlow ops that were fused into it, "model/relu1/Relu;model/conv1/Conv2D",
each with its name scopes. tf_keras opens one scope per layer, "model/layer/op". QAT wraps layers as "quant_<layer>".
Keras 3 opens each scope twice, so that TensorFlow names it "layer_1", and "layer_1_1" if the layer is "layer_1".
Observed on models converted with TensorFlow 2.21, tf_keras 2.21, Keras 3.15 and tfmot 0.8.1.
"""

import collections
import re
from collections.abc import Collection, Iterable, Sequence

from tfq.tflite.records import Tensor

_WRAPPERS = ("quant_", "prune_low_magnitude_")
_CONTROL_FLOW = ("cond", "while")
# Fewer scopes are parts of one layer ("query", "key", "value"), not layers of a model.
_LEAST_LAYERS = 6
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_FAKE_QUANT = "FakeQuantWithMinMaxVars"
# Longer names are cut, so that reading takes linear time for every file.
_LONGEST_NAME, _LONGEST_LAYER, _MOST_PARTS, _MOST_TENSORS = 4096, 256, 32, 4

# TFLite op -> last scopes of its TensorFlow ops, if they do not start like the TFLite op's name.
_SCOPES = {
    "CONV_2D": {"convolution"},
    "FULLY_CONNECTED": {"matmul", "tensordot", "einsum"},
    "AVERAGE_POOL_2D": {"avgpool"},
    "ADD": {"addv"},
}


class LayerNames:
    """The Keras layers of the ops of one subgraph."""

    def __init__(self, tensors: Sequence[Tensor], known: Collection[str] | None) -> None:
        """Prepare the lookup.

        Args:
            tensors: The tensors of the subgraph.
            known: The layer names that the file lists. Without them, tensor names are assumed to be prefix/layer/op.
        """
        self._tensors = tensors
        self._known = frozenset(known) if known else None
        names = [tensor.name[:_LONGEST_NAME] for tensor in tensors]
        self._fake_quantized = any(_FAKE_QUANT in name for name in names)
        scopes = {scope for name in names for part in name.split(";") for scope in part.split("/")} if known else set()
        self._numbered_scopes = _has_numbered_scopes(scopes, self._known or ())
        self._wrapped_scopes = _has_wrapped_scopes(scopes, self._known or ())
        self._prefix = () if self._known else _shared_prefix(tensors)
        self._cache: dict[int, tuple[tuple[str, tuple[str, ...]], ...]] = {}

    def layer(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> str | None:
        """Return the layer of the op `name` on these tensors, or None.

        It is the layer whose scope names the kind of the op, otherwise the first layer in the tensors' names.
        """
        constants = (index for index in inputs[: 2 * _MOST_TENSORS] if index >= 0 and self._tensors[index].is_constant)
        origins = [origin for index in (*outputs[:_MOST_TENSORS], *constants) for origin in self._origins(index)]
        kinds = _SCOPES.get(name, set())
        begins = name.replace("_", "").lower()
        matching = [
            layer
            for layer, scopes in origins
            if any(scope in kinds or (len(scope) > 2 and begins.startswith(scope)) for scope in scopes)
        ]
        if not matching:
            return origins[0][0] if origins else None
        # Constants that layers share add names of other layers; the op's own layer has more parts, or comes last.
        parts = collections.Counter(layer for layer, _ in origins)
        return max(reversed(matching), key=parts.__getitem__)

    def _origins(self, index: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return (layer, normalized scopes within it) of each TensorFlow op in the tensor's name."""
        if index not in self._cache:
            parts = self._tensors[index].name[:_LONGEST_NAME].split(";")[:_MOST_PARTS]
            result = (self._origin(part) for part in parts)
            self._cache[index] = tuple(origin for origin in result if origin)
        return self._cache[index]

    def _origin(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        scopes = [scope for scope in name.split("/") if scope not in _CALLS]
        if self._known is None:
            # TensorFlow's control flow puts other scopes in front.
            at = _depth(scopes, self._prefix) if len(scopes) > 2 and scopes[0] not in _CONTROL_FLOW else None
            layer = self._unwrapped(scopes[at]) if at else None
        else:
            # The innermost layer, because a nested model is a layer of the outer one. The last scope is the op.
            named = ((at, self._known_layer(scopes[at])) for at in reversed(range(len(scopes) - 1)))
            at, layer = next(((at, layer) for at, layer in named if layer), (None, None))
        if at is None or not layer or len(layer) > _LONGEST_LAYER:
            return None
        return layer, tuple(_normalized(scope) for scope in scopes[at + 1 :])

    def _known_layer(self, scope: str) -> str | None:
        plain = re.sub(r"_\d+$", "", scope)
        candidates = [plain, scope] if self._numbered_scopes else [scope, plain]
        unwrapped = [_without_wrapper(scope), _without_wrapper(plain)]
        candidates = [*unwrapped, *candidates] if self._wrapped_scopes else [*candidates, *unwrapped]
        return next((name for name in candidates if self._known and name in self._known), None)

    def _unwrapped(self, layer: str) -> str:
        return _without_wrapper(layer) if self._fake_quantized else layer


def _shared_prefix(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the scopes between the model's scope and the layers' scopes, for a file that lists no layers.

    "MobilenetV1/MobilenetV1/Conv2d_0/Relu6" has one; if it were taken for the layer, all ops would have the same layer.
    A scope belongs to the prefix if it contains more than half of the activations, in at least `_LEAST_LAYERS` scopes.
    """
    names = [tensor.name[:_LONGEST_NAME].split(";")[0] for tensor in tensors if not tensor.is_constant]
    paths = [[scope for scope in name.split("/") if scope not in _CALLS][:_MOST_PARTS] for name in names]
    paths = [path for path in paths if len(path) > 2 and path[0] not in _CONTROL_FLOW]
    prefix: tuple[str, ...] = ()
    scopes: list[str] = []
    total = len(paths)
    while paths:
        at = 1 + len(scopes)
        scope, count = collections.Counter(path[at] for path in paths).most_common(1)[0]
        if 2 * count <= total:
            break
        scopes.append(scope)
        paths = [path for path in paths if path[at] == scope and len(path) > at + 2]
        if len({path[at + 1] for path in paths}) >= _LEAST_LAYERS:
            prefix = tuple(scopes)
    return prefix


def _depth(scopes: Sequence[str], prefix: Sequence[str]) -> int:
    """Return the index of the layer's scope: 1, or the one after the prefix if another scope follows it."""
    at = 1
    for scope in prefix:
        if scopes[at] != scope or len(scopes) <= at + 2:
            break
        at += 1
    return at


def _has_wrapped_scopes(scopes: Iterable[str], known: Collection[str]) -> bool:
    """Check whether a scope is that of a wrapper around a known layer; `quant_x` is then the wrapper of `x`."""
    return any(scope not in known and (name := _without_wrapper(scope)) != scope and name in known for scope in scopes)


def _has_numbered_scopes(scopes: Iterable[str], known: Collection[str]) -> bool:
    """Check whether removing the number from each scope matches more layers than the scopes as they are."""
    exact = {scope for scope in scopes if scope in known}
    plain = {match[1] for scope in scopes if (match := re.fullmatch(r"(.+)_\d+", scope)) and match[1] in known}
    return len(plain) > len(exact)


def _without_wrapper(layer: str) -> str:
    """Return the name without the prefix of a wrapper."""
    return next((layer.removeprefix(wrapper) for wrapper in _WRAPPERS if layer.startswith(wrapper)), layer)


def _normalized(scope: str) -> str:
    # TensorFlow numbers repeated names: MatMul1 for tensors, add_1 for scopes.
    return re.sub(r"[_\d]+$", "", scope.partition(":")[0]).lower()
