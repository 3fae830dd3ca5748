# SPDX-License-Identifier: Apache-2.0
"""Find everything in a model's config that would run code, before Keras deserializes the config."""

import math
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.loading import custom_objects
from tfq.keras_bridge.loading.model_file import ModelFile


@dataclass(frozen=True, kw_only=True)
class CodeFinding:
    """One piece of a config that would run code.

    Attributes:
        layer: Path of the layer, with the names of the models outer it ("outer/inner").
        reason: Why it would run code.
    """

    layer: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return {"layer": path, "reason": text}."""
        return asdict(self)


def find_code(config: Any, registered: Set[str] = frozenset()) -> tuple[CodeFinding, ...]:
    """Return every object in a Keras config, at any depth, that is not on the allow-list.

    Args:
        config: A parsed JSON value.
        registered: Names of the classes and functions that the user's process has registered
            (`register_keras_serializable`). They are the user's own code and are allowed.
    """
    findings: dict[CodeFinding, None] = {}
    stack: list[tuple[Any, str]] = [(config, "")]
    while stack:
        node, layer = stack.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                layer = _layer_name(node, layer)
                for reason in _reasons(node, registered):
                    findings[CodeFinding(layer=layer or "(model)", reason=reason)] = None
            stack.extend((child, layer) for child in reversed(node.values()))
        elif isinstance(node, list):
            stack.extend((child, layer) for child in reversed(node))
    return tuple(findings)


def refuse_code(file: ModelFile, registered: Set[str] = frozenset()) -> None:
    """Raise InputError if the config of `file` would run code; one error lists all results of `find_code`."""
    findings = find_code(file.config, registered)
    top = file.config.get("class_name")
    if top is None:
        raise InputError(
            f"{file.path}: the model's config has no class_name. Expected a model that Keras saved",
            field="model",
            expected="a model that Keras saved",
            got=str(file.path),
        )
    if findings:
        listed = "\n".join(f"  layer {finding.layer!r}: {finding.reason}" for finding in findings)
        raise InputError(
            f"{file.path} contains {len(findings)} object(s) that would run code when the model is loaded:\n{listed}\n"
            "Pass your own classes (custom_objects={...}, or a file in plugin), or pass allow_code=True if you trust "
            "the author of the file",
            field="model",
            expected="no code",
            got=tuple(finding.layer for finding in findings),
            limit="code-in-files",
        )


def refuse_impossible_sizes(file: ModelFile) -> None:
    """Raise InputError if a layer's config asks for more weights than the file has bits.

    Keras builds a model from its config before it reads weights, so a small file could ask for all of the memory.
    """
    limit = 8 * file.stored_bytes
    stack: list[tuple[Any, str]] = [(file.config, "")]
    while stack:
        node, layer = stack.pop()
        if isinstance(node, dict):
            layer = _layer_name(node, layer) if "class_name" in node else layer
            for key in custom_objects.WEIGHT_SIZES & node.keys():
                sizes = node[key] if isinstance(node[key], list) else [node[key]]
                numbers = [size for size in sizes if isinstance(size, (int, float)) and not isinstance(size, bool)]
                if not math.prod(numbers) <= limit:
                    raise InputError(
                        f"{file.path}: layer {layer!r} asks for {key}={node[key]}, which is more weights than fit into "
                        f"the {limit // 8} bytes of the file. Expected a model that Keras saved",
                        field="model",
                        expected=limit // 8,
                        got=node[key],
                    )
            stack.extend((child, layer) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, layer) for child in node)


def _layer_name(node: dict[str, Any], outer: str) -> str:
    config = node.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    name = name if isinstance(name, str) else node.get("name")
    if not isinstance(name, str):
        return outer
    return f"{outer}/{name}" if outer else name


def _reasons(node: dict[str, Any], registered: Set[str]) -> Iterator[str]:
    name, config = node["class_name"], node.get("config")
    if not isinstance(name, str):
        yield f"its class_name is {name!r}, not a name"
    elif name == "function":
        yield from _function_reasons(node, registered)
    elif name in ("__typespec__", "TypeSpec", "CompositeTensor"):
        if not _is_tensor_spec(node):
            yield f"it contains a {name} that is not a TensorSpec"
    elif name not in custom_objects.DATA:
        yield from _class_reasons(node, name, registered)
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str) and config["vocabulary"]:
        yield f"it reads its vocabulary from a path ({config['vocabulary']!r})"


def _class_reasons(node: dict[str, Any], name: str, registered: Set[str]) -> Iterator[str]:
    if name == "__lambda__":
        yield "it contains the bytecode of a Python lambda"
        return
    if name in custom_objects.REFUSED_CLASSES:
        yield custom_objects.REFUSED_CLASSES[name]
        return
    # In its new format Keras looks a class up by registered_name, and then imports the module that the file names. In
    # the old format it looks the class up by class_name.
    looked_up = node.get("registered_name") if "module" in node else name
    if looked_up is not None and not isinstance(looked_up, str):
        yield f"its registered_name is {looked_up!r}, not a name"
        return
    if looked_up in registered:
        return
    module = node.get("module", "keras")
    if _is_tfmot_class(name, module):
        return
    if isinstance(module, str) and custom_objects.OPERATION_MODULES.fullmatch(module):
        if name in custom_objects.REFUSED_OPERATIONS or not name.isidentifier():
            yield f"the operation {name} runs functions that the file names"
    elif not isinstance(module, str) or not custom_objects.KERAS_MODULE.fullmatch(module):
        where = f"{module}.{name}" if isinstance(module, str) else name
        yield f"the class {where} is not part of Keras and is not registered"
    elif name not in custom_objects.CLASSES:
        yield f"the class {name} is not part of Keras and is not registered"
    if name in custom_objects.TF_FUNCTION_LAYERS:
        config = node.get("config")
        function = config.get("function") if isinstance(config, dict) else None
        if not isinstance(function, str) or not custom_objects.TF_FUNCTIONS.fullmatch(function):
            yield f"it calls the TensorFlow function {function!r}"


def _is_tfmot_class(name: Any, module: Any) -> bool:
    is_known_module = isinstance(module, str) and (
        custom_objects.TFMOT_MODULE.fullmatch(module) or custom_objects.KERAS_MODULE.fullmatch(module)
    )
    return bool(is_known_module) and isinstance(name, str) and name in custom_objects.TFMOT_CLASSES


def contains_tfmot(config: Any) -> bool:
    """Check whether a Keras config contains a tfmot class: a quantization-aware or pruning model."""
    stack = [config]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if _is_tfmot_class(node.get("class_name"), node.get("module", "keras")):
                return True
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return False


def _function_reasons(node: dict[str, Any], registered: Set[str]) -> Iterator[str]:
    function, module = node.get("config"), node.get("module")
    if isinstance(function, str) and function in registered:
        return
    is_keras_module = (
        module is None
        or module == "builtins"
        or (isinstance(module, str) and custom_objects.KERAS_MODULE.fullmatch(module))
    )
    if not is_keras_module or not isinstance(function, str) or function not in custom_objects.FUNCTIONS:
        yield f"it calls the Python function {module}.{function}, which is not registered"


def _is_tensor_spec(node: dict[str, Any]) -> bool:
    if node["class_name"] == "TypeSpec":
        return node.get("type_spec") == "tf.TensorSpec"
    module = node.get("module")
    is_tensorflow = isinstance(module, str) and module.startswith("tensorflow.python.framework.")
    return node["class_name"] == "__typespec__" and node.get("spec_name") == "TensorSpec" and is_tensorflow
