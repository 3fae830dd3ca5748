# SPDX-License-Identifier: Apache-2.0
"""Read a SavedModel that was exported for serving, and refuse what conversion must not run, before anything is loaded.

Such a directory has no Keras config, so the model is its graph: the part that computes the outputs of one signature.
TensorFlow's own loader is not used, because it runs initializers that the file contains. Instead, the graph of the
signature is cut out of saved_model.pb, its ops are checked against TensorFlow's registry, and its variables are read
from the checkpoint. The checkpoint's key of a variable is found through the object graph that both files contain.
Formats: tensorflow/core/protobuf/{saved_model,saved_object_graph,trackable_object_graph}.proto, TensorFlow 2.21.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tfq.backends.scratch import scratch_directory
from tfq.errors import InputError, did_you_mean
from tfq.keras_bridge.loading.model_file import MAX_FILE_BYTES, read_saved_model_files
from tfq.text_table import listed

# Signatures that TensorFlow adds for itself.
_OWN_SIGNATURES = ("__saved_model_init_op", "__saved_model_train_op")
DEFAULT_SIGNATURE = "serving_default"
_SERVE = "serve"
_LARGEST_GRAPH_BYTES = 2**31 - 1

# Why an op is refused -> what it does, and what to do.
_ADVICE = {
    "host": "reads or writes files, runs Python code, prints or reaches other systems, so nothing of it is run. Pass "
    "allow_code=True if you trust the author of the file",
    "table": "uses lookup tables, which a .tflite cannot contain. Do the lookup in the data pipeline, and export the "
    "model without it",
    "training": "contains a training step. Export the call with training=False",
    "compiled": "contains code that was compiled for another runtime (XLA, TPU, JAX), for which TFLite has no ops. "
    "Export the model as TensorFlow ops",
    "unknown": "contains ops that this TensorFlow does not have. Install the package that registers them, or export "
    "the model without them",
}

# Ops with a state that TFLite's converter removes, or that only read the model's own variables.
_HARMLESS = re.compile(
    r"VarHandleOp|_?ReadVariables?Op|ResourceGather(Nd)?|VariableShape|VarIsInitializedOp|DisableCopyOnRead"
    r"|(Stateful)?PartitionedCall|If|While|Case|Assert|CheckNumerics(V2)?|GuaranteeConst|Empty|DeepCopy"
    r"|Random(Uniform|UniformInt|StandardNormal|Shuffle|Gamma)|(Parameterized)?TruncatedNormal|Multinomial"
    r"|StatelessRandomGetAlg|Rng(ReadAndSkip|Skip)|Stateful(Uniform|Truncated|Standard|Random)\w*|Assign\w*VariableOp"
    r"|ResourceScatter\w*|TensorArray\w*V3|Stack\w*V2"
)
_TABLES = re.compile(r"Table|StaticHash|Vocab")
_TRAINING = re.compile(r"Resource(Sparse)?Apply.*")
_COMPILED = re.compile(r".*(Xla|Tpu|TPU|TRT|CudnnRNN).*")
# Ops without a declared state that read files or run Python.
_HOST = re.compile(r"ReadFile|MatchingFiles|.*PyFunc.*|.*Dataset.*|Reader.*|Debug.*")


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedModel:
    """A SavedModel without a Keras config: the graph that computes each of its signatures. Nothing in it has run.

    Attributes:
        path: The directory.
        signatures: The names of its signatures.
        allow_code: Whether its graph may contain ops that read or write files or run Python.
        meta_graph: The graph with the tag "serve": a MetaGraphDef.
        checkpoint: Name -> content of the files in `variables/`.
    """

    path: Path
    signatures: tuple[str, ...]
    allow_code: bool = False
    meta_graph: object = field(repr=False)
    checkpoint: Mapping[str, bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    def signature(self, name: str = "") -> "Signature":
        """Return a signature.

        Args:
            name: Its name; "" is the only one, or `serving_default` if there are several.

        Raises:
            InputError: There is no such signature, or its graph contains ops that tfq refuses.
        """
        if name and name not in self.signatures:
            raise InputError(
                f"conversion.signature={name}: {self.path} has no such signature: "
                f"{did_you_mean(name, self.signatures)}",
                field="conversion.signature",
                expected=self.signatures,
                got=name,
            )
        if not name:
            name = self.signatures[0] if len(self.signatures) == 1 else DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise InputError(
                f"{self.path} has {len(self.signatures)} signatures: {', '.join(self.signatures)}. Set "
                "conversion.signature to the one to convert",
                field="conversion.signature",
                expected=self.signatures,
                got="",
            )
        return _signature(self, name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Signature:
    """The graph that computes a signature.

    Attributes:
        name: Its name.
        graph_def: The GraphDef, without the placeholders of the inputs and without the variables.
        inputs: {input name: its TensorInfo}, in the order of the function's arguments.
        outputs: {output name: its TensorInfo}.
        variables: {name of the variable's node: its value}.
    """

    name: str
    graph_def: object
    inputs: dict[str, object]
    outputs: dict[str, object]
    variables: dict[str, NDArray]


def _meta_graph(model: SavedModel) -> Any:
    return model.meta_graph


def load_saved_model(path: str | os.PathLike[str], *, allow_code: bool = False) -> SavedModel:
    """Read a SavedModel for `convert`, which converts the graph of one of its signatures. Nothing in it runs.

    It may come from `model.export` of either Keras, or from `tf.saved_model.save`. Directories that Keras 2's
    `model.save` wrote are accepted too; `load_model` returns a Keras model for those.

    Examples:
        >>> flatbuffer = tfq.convert(tfq.load_saved_model("exported"), x_train[:200])

    Args:
        path: The directory.
        allow_code: Whether its graph may contain ops that read or write files or run Python. Without it, a conversion
            of a signature with such ops is refused.

    Returns:
        The SavedModel.

    Raises:
        InputError: It is not a SavedModel, is damaged, or has no signature.
    """
    path = Path(path)
    graph, checkpoint = read_saved_model_files(path)
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    if len(graph) > _LARGEST_GRAPH_BYTES:
        raise _damaged(path, f"saved_model.pb has {len(graph)} bytes, the most is {_LARGEST_GRAPH_BYTES}")
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(graph)
    except (DecodeError, RuntimeError) as error:
        raise _damaged(path, f"saved_model.pb is not a SavedModel: {error}") from error
    graphs = [item for item in message.meta_graphs if _SERVE in item.meta_info_def.tags] or list(message.meta_graphs)
    if len(graphs) != 1:
        tags = [" ".join(item.meta_info_def.tags) or "(none)" for item in message.meta_graphs]
        raise _damaged(path, f"expected one graph with the tag {_SERVE!r}, got graphs with the tags {listed(tags)}")
    signatures = tuple(
        sorted(name for name, item in graphs[0].signature_def.items() if name not in _OWN_SIGNATURES and item.outputs)
    )
    if not signatures:
        raise InputError(
            f"{path} is a SavedModel without a signature, so it does not say what its inputs and outputs are. Export "
            "it with model.export (Keras), or with tf.saved_model.save(module, path, signatures=function)",
            field="model",
            expected="a signature",
            got=str(path),
            limit="no-signature",
        )
    return SavedModel(
        path=path, signatures=signatures, allow_code=allow_code, meta_graph=graphs[0], checkpoint=checkpoint
    )


def _signature(model: SavedModel, name: str) -> Signature:
    definition = _meta_graph(model).signature_def[name]
    outputs = dict(sorted(definition.outputs.items(), key=lambda item: _natural(item[0])))
    inputs = dict(sorted(definition.inputs.items(), key=lambda item: _natural(item[0])))
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for key, tensor in tensors.items():
            if tensor.WhichOneof("encoding") != "name":
                raise InputError(
                    f"{model.path}: {kind} {key!r} of the signature {name!r} is a sparse or composite tensor, expected "
                    "a dense tensor",
                    field="model",
                    expected="a dense tensor",
                    got=key,
                    limit="sparse-signature",
                )
    nodes = {node.name: node for node in _meta_graph(model).graph_def.node}
    places = {node_of(tensor.name) for tensor in inputs.values()}
    needed = _reachable(model.path, nodes, {node_of(tensor.name) for tensor in outputs.values()}, places)
    functions = _reachable_functions(_meta_graph(model).graph_def.library, [nodes[item] for item in needed])
    bodies = [("the graph", [nodes[item] for item in needed])]
    bodies += [(f"the function {function.signature.name}", function.node_def) for function in functions]
    _refuse_ops(model, name, bodies)
    handles = [item for item in needed if nodes[item].op == "VarHandleOp"]
    call = next((nodes[item] for item in needed if _is_call_of(model, nodes[item], name)), None)
    if call is not None:
        order = [node_of(tensor) for tensor in call.input]
        inputs = dict(sorted(inputs.items(), key=lambda item: _place(order, node_of(item[1].name))))
    return Signature(
        name=name,
        graph_def=_graph_of([nodes[item] for item in needed if item not in handles], functions, _meta_graph(model)),
        inputs=inputs,
        outputs=outputs,
        variables=_values_of(model, name, call, handles),
    )


def node_of(tensor: str) -> str:
    """Return the name of the node in a tensor's or a control input's name: "^a", "a:1", "a"."""
    return tensor.removeprefix("^").partition(":")[0]


def _natural(name: str) -> list[Any]:
    """Return a key that sorts "output_2" before "output_10"."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d{1,15})", name)]


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _reachable(path: Path, nodes: Mapping[str, Any], outputs: Iterable[str], inputs: set[str]) -> list[str]:
    """Return the nodes that the outputs depend on, in the graph's order, without those of the inputs."""
    seen, stack = set(inputs), [name for name in outputs if name not in inputs]
    seen.update(stack)
    while stack:
        name = stack.pop()
        if name not in nodes:
            raise _damaged(path, f"its graph refers to the node {name!r}, which it does not have")
        for tensor in nodes[name].input:
            source = node_of(tensor)
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return [name for name in nodes if name in seen and name not in inputs]


def _reachable_functions(library: Any, nodes: Iterable[Any]) -> list[Any]:
    """Return the functions that nodes call, and those that these call."""
    known = {function.signature.name: function for function in library.function}
    seen: dict[str, Any] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        for name in _called(node):
            if name in known and name not in seen:
                seen[name] = known[name]
                stack.extend(known[name].node_def)
    return [function for name, function in known.items() if name in seen]


def _called(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
        elif kind == "list":
            yield from (function.name for function in value.list.func)


def _refuse_ops(model: SavedModel, signature: str, bodies: Iterable[tuple[str, Iterable[Any]]]) -> None:
    """Raise InputError for ops that access the host, tables, updates of variables, and unknown ops."""
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in _meta_graph(model).graph_def.library.function}
    findings: dict[str, dict[str, str]] = {kind: {} for kind in _ADVICE}
    for where, nodes in bodies:
        for node in nodes:
            if node.op in functions:
                continue
            definition = op_def_registry.get(node.op)
            kind = _kind_of(node.op, definition)
            if kind:
                findings[kind].setdefault(node.op, f"{node.op} ({node.name} in {where})")
    for kind, ops in findings.items():
        if ops and not (kind == "host" and model.allow_code):
            raise InputError(
                f"{model.path}: the signature {signature!r} {_ADVICE[kind]}. Its ops: {', '.join(ops.values())}",
                field="model",
                expected="ops that only compute",
                got=tuple(ops),
                limit="saved-model-ops",
            )


def _kind_of(op: str, definition: Any) -> str:
    """Return why an op is refused, a key of `_ADVICE`; "" if it is not."""
    if definition is None:
        return "unknown"
    if _TABLES.search(op):
        return "table"
    if _HARMLESS.fullmatch(op):
        return ""
    if _TRAINING.fullmatch(op):
        return "training"
    if _COMPILED.fullmatch(op):
        return "compiled"
    return "host" if definition.is_stateful or _HOST.fullmatch(op) else ""


def _graph_of(nodes: Iterable[Any], functions: Iterable[Any], meta_graph: Any) -> Any:
    """Return a GraphDef of these nodes and functions.

    Devices and recorded shapes are removed: the shapes are inferred from those of the inputs.
    """
    from tensorflow.core.framework import graph_pb2

    result = graph_pb2.GraphDef()
    result.versions.CopyFrom(meta_graph.graph_def.versions)
    result.node.extend(nodes)
    result.library.function.extend(functions)
    for function in result.library.function:
        for attributes in function.arg_attr.values():
            attributes.attr.pop("_output_shapes", None)
        function.attr.pop("_input_shapes", None)
    bodies = [result.node, *(function.node_def for function in result.library.function)]
    for node in (node for body in bodies for node in body):
        node.device = ""
        node.attr.pop("_output_shapes", None)
    return result


def _is_call_of(model: SavedModel, node: Any, signature: str) -> bool:
    return node.op in ("StatefulPartitionedCall", "PartitionedCall") and node.attr["f"].func.name == _function_name(
        model, signature
    )


def _function_name(model: SavedModel, signature: str) -> str:
    """Return the name of the function of a signature in the object graph: root.signatures[signature]."""
    nodes = _meta_graph(model).object_graph_def.nodes
    place = 0
    for step in ("signatures", signature):
        if place >= len(nodes):
            return ""
        place = next((child.node_id for child in nodes[place].children if child.local_name == step), len(nodes))
    return nodes[place].bare_concrete_function.concrete_function_name if place < len(nodes) else ""


def _values_of(model: SavedModel, signature: str, call: Any, handles: list[str]) -> dict[str, NDArray]:
    """Return {name of a variable's node in the graph: its value in the checkpoint}."""
    if not handles:
        return {}
    functions = _meta_graph(model).object_graph_def.concrete_functions
    name = _function_name(model, signature)
    if call is None or name not in functions:
        raise InputError(
            f"{model.path} does not say where its variables are stored: it was written by TensorFlow 1. Load and save "
            "it with TensorFlow 2 (tf.saved_model.load, tf.saved_model.save)",
            field="model",
            expected="a SavedModel of TensorFlow 2",
            got=str(model.path),
            limit="tensorflow-1",
        )
    bound = list(functions[name].bound_inputs)
    captured = [node_of(tensor) for tensor in call.input if not tensor.startswith("^")]
    objects = dict(zip(captured[len(captured) - len(bound) :], bound, strict=True))
    values = _checkpoint_values(model)
    result = {}
    for handle in handles:
        place = objects.get(handle, -1)
        if place not in values:
            raise _damaged(model.path, f"its checkpoint has no value for the variable {handle!r}")
        result[handle] = values[place]
    return result


def _checkpoint_values(model: SavedModel) -> dict[int, NDArray]:
    """Return {node of the object graph: its value} for all variables in the checkpoint."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    saved = _meta_graph(model).object_graph_def.nodes
    with scratch_directory() as directory:
        for name, content in model.checkpoint.items():
            (directory / name).write_bytes(content)
        try:
            reader = tf.train.load_checkpoint(str(directory / "variables"))
            types, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
            declared = sum(types[key].size * _count(shape) for key, shape in shapes.items())
            if declared > MAX_FILE_BYTES:
                raise _damaged(model.path, f"its checkpoint declares {declared} bytes, the most is {MAX_FILE_BYTES}")
            graph = trackable_object_graph_pb2.TrackableObjectGraph()
            graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
            return {
                place: reader.get_tensor(key)
                for place, key in _keys_of(saved, graph.nodes)
                if key in shapes and saved[place].WhichOneof("kind") == "variable"
            }
        except (tf.errors.OpError, ValueError, TypeError, LookupError, DecodeError, RuntimeError) as error:
            raise _damaged(model.path, f"its checkpoint cannot be read: {error}") from error


def _keys_of(saved: Any, stored: Any) -> Iterator[tuple[int, str]]:
    """Yield (node of the SavedModel, key in the checkpoint), by walking both object graphs from their roots."""
    seen, stack = {0}, [(0, 0)] if len(saved) and len(stored) else []
    while stack:
        place, other = stack.pop()
        for attribute in stored[other].attributes:
            if attribute.name == "VARIABLE_VALUE":
                yield place, attribute.checkpoint_key
        children = {child.local_name: child.node_id for child in stored[other].children}
        for child in saved[place].children:
            match = children.get(child.local_name)
            if match is None or child.node_id in seen or child.node_id >= len(saved) or match >= len(stored):
                continue
            seen.add(child.node_id)
            stack.append((child.node_id, match))


def _count(shape: Iterable[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is a damaged or unknown SavedModel: {reason}. Export the model again",
        field="model",
        expected="a SavedModel of TensorFlow 2",
        got=str(path),
    )
