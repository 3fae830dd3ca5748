# SPDX-License-Identifier: Apache-2.0
"""Which Keras layer an op came from, by the names that conversion leaves on its tensors.

A converted tensor is called after the TensorFlow ops fused into it, "model/relu1/Relu;model/conv1/Conv2D", each by
its name scopes. tf_keras opens one scope a layer, "model/layer/op"; QAT wraps layers as "quant_<layer>"; Keras 3 opens
each scope twice, so that TensorFlow calls it "layer_1", and "layer_1_1" where the layer is "layer_1".
Read off models converted with TensorFlow 2.21, tf_keras 2.21, Keras 3.15 and tfmot 0.8.1.
"""

import collections
import re
from collections.abc import Collection, Iterable, Sequence

from tfq.tflite.records import Tensor

_WRAPPERS = ("quant_", "prune_low_magnitude_")
_CONTROL_FLOW = ("cond", "while")
# Fewer scopes than this are the parts of one layer ("query", "key", "value"), not layers of a model.
_LEAST_LAYERS = 6
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_FAKE_QUANT = "FakeQuantWithMinMaxVars"
# More than this is not looked at: reading stays linear in the file whatever it holds.
_LONGEST_NAME, _LONGEST_LAYER, _MOST_PARTS, _MOST_TENSORS = 4096, 256, 32, 4

# The last scope of a TensorFlow op, where it is not the beginning of the TFLite op's own name.
_SCOPES = {
    "CONV_2D": {"convolution"},
    "FULLY_CONNECTED": {"matmul", "tensordot", "einsum"},
    "AVERAGE_POOL_2D": {"avgpool"},
    "ADD": {"addv"},
}


class LayerNames:
    """The layers of one subgraph's ops."""

    def __init__(self, tensors: Sequence[Tensor], known: Collection[str] | None) -> None:
        """known: the layer names that the file lists; without them the form is taken to be prefix/layer/op."""
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
        """Return the layer of op `name` on these tensors: that whose scope names the op's kind, else the first."""
        constants = (index for index in inputs[: 2 * _MOST_TENSORS] if index >= 0 and self._tensors[index].is_constant)
        origins = [origin for index in (*outputs[:_MOST_TENSORS], *constants) for origin in self._origins(index)]
        wanted = _SCOPES.get(name, set())
        begins = name.replace("_", "").lower()
        doing = [
            layer
            for layer, scopes in origins
            if any(scope in wanted or (len(scope) > 2 and begins.startswith(scope)) for scope in scopes)
        ]
        if not doing:
            return origins[0][0] if origins else None
        # Constants that several layers share put strangers' names in; the op's own layer has more parts, or comes last.
        parts = collections.Counter(layer for layer, _ in origins)
        return max(reversed(doing), key=parts.__getitem__)

    def _origins(self, index: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(layer, normalized scopes inside it) of each TensorFlow op in the tensor's name."""
        if index not in self._cache:
            parts = self._tensors[index].name[:_LONGEST_NAME].split(";")[:_MOST_PARTS]
            result = (self._origin(part) for part in parts)
            self._cache[index] = tuple(origin for origin in result if origin)
        return self._cache[index]

    def _origin(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        scopes = [scope for scope in name.split("/") if scope not in _CALLS]
        if self._known is None:
            # TensorFlow's control flow has scopes of its own in front.
            at = _depth(scopes, self._prefix) if len(scopes) > 2 and scopes[0] not in _CONTROL_FLOW else None
            layer = self._unwrapped(scopes[at]) if at else None
        else:
            # The innermost, for a nested model is itself a layer of the outer one; but the last is the op, "layer/add".
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
    """Return the scopes between the model's own and the layers', in the tensor names of a file that lists no layers.

    "MobilenetV1/MobilenetV1/Conv2d_0/Relu6" has one: were it the layer, all ops of the file would be of one layer. A
    scope belongs to the prefix if more than half of the activations are in it, in at least `_LEAST_LAYERS` scopes.
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
    """Return which of `scopes` is the layer's: the second, or the one behind the prefix if there is an op behind it."""
    at = 1
    for scope in prefix:
        if scopes[at] != scope or len(scopes) <= at + 2:
            break
        at += 1
    return at


def _has_wrapped_scopes(scopes: Iterable[str], known: Collection[str]) -> bool:
    """Check whether some scope is that of a wrapper around a known layer: then `quant_x` is the wrapper of `x`."""
    return any(scope not in known and (name := _without_wrapper(scope)) != scope and name in known for scope in scopes)


def _has_numbered_scopes(scopes: Iterable[str], known: Collection[str]) -> bool:
    """Whether more layers are found by taking the number off each scope than by the scopes as they are."""
    exact = {scope for scope in scopes if scope in known}
    plain = {match[1] for scope in scopes if (match := re.fullmatch(r"(.+)_\d+", scope)) and match[1] in known}
    return len(plain) > len(exact)


def _without_wrapper(layer: str) -> str:
    """Return the name without the wrapper's, which is there once."""
    return next((layer.removeprefix(wrapper) for wrapper in _WRAPPERS if layer.startswith(wrapper)), layer)


def _normalized(scope: str) -> str:
    # Two tensors of one name are told apart by a number at the end: MatMul, MatMul1; a scope used twice by add_1.
    return re.sub(r"[_\d]+$", "", scope.partition(":")[0]).lower()
