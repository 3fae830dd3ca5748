# SPDX-License-Identifier: Apache-2.0
"""Inspect a Keras model file and load it with the Keras version that wrote it.

Private symbol: tf_keras.src.saving.serialization_lib.SafeModeScope, read in tf_keras 2.21.0. The `.h5` loader of
tf_keras does not set safe mode, and so it would run the bytecode of Lambda layers.
"""

import contextlib
import importlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfq import artifacts, hdf5
from tfq.backends.scratch import scratch_directory
from tfq.errors import InputError, TfqError
from tfq.keras_bridge.copies import keep_names
from tfq.keras_bridge.environment import import_keras, import_tf_keras, import_tfmot, model_kind
from tfq.keras_bridge.layers.tfq_layers import register_tfq_objects
from tfq.keras_bridge.loading.inspection import contains_tfmot, refuse_code, refuse_impossible_sizes
from tfq.keras_bridge.loading.model_file import (
    MAX_FILE_BYTES,
    ModelFile,
    is_exported,
    model_json,
    read_model_file,
)
from tfq.keras_bridge.loading.saved_model import SavedModel, load_saved_model
from tfq.keras_bridge.operations.keras_operation import keras_operation_class
from tfq.keras_bridge.quantize_configs import quantize_config_classes
from tfq.keras_bridge.wrapped import CLUSTERED, wrapper_kind
from tfq.progress import stage
from tfq.typing import KerasModel


def load_model(
    model: str | os.PathLike[str] | KerasModel,
    *,
    allow_code: bool = False,
    custom_objects: Mapping[str, object] | None = None,
) -> KerasModel:
    """Load a Keras model in the Keras that saved it: tf_keras for Keras 1 and 2, Keras 3 otherwise.

    The format and the Keras are recognized by the content, not by the file's name. The model is never compiled, so
    custom losses and metrics are not needed.

    Examples:
        >>> model = tfq.load_model("model.keras")

    Args:
        model: The path of a `.keras` or `.h5` file of either Keras, of a SavedModel directory that Keras 2's
            `model.save` wrote, or of an unpacked `.keras` directory of Keras 3; or a live model, which is returned
            unchanged.
        allow_code: Whether Lambda layers and classes that the file names may run. Without it, a file that contains any
            is refused before TensorFlow or Keras reads it. The graphs of a SavedModel never run.
        custom_objects: Your own classes and functions, by the names that the file uses, in addition to the registered
            ones (`register_keras_serializable`). They must be of the Keras that saved the file.

    Returns:
        The model, built and not compiled.

    Raises:
        InputError: The file is not a Keras model, contains code, is an exported SavedModel, or Keras cannot build it.
    """
    if not isinstance(model, (str, os.PathLike)):
        model_kind(model)
        return model
    file = read_model_file(model)
    keras = import_tf_keras() if file.kind == "tf_keras" else import_keras()
    if file.kind == "tf_keras":
        # These calls register tfq's classes, which the file of a bridged model may contain.
        keras_operation_class()
        register_tfq_objects()
        if contains_tfmot(file.config):
            quantize_config_classes()
    custom = dict(custom_objects or {})
    with artifacts.decoding(file.path, "the config of a model that Keras saved", field="model"):
        if not allow_code:
            refuse_code(file, frozenset(keras.saving.get_custom_objects()) | frozenset(custom))
        refuse_impossible_sizes(file)
    # Keras loads a copy of the inspected bytes, so that they cannot change between inspection and loading. The copy has
    # the suffix by which Keras chooses its loader.
    with scratch_directory() as directory:
        return _load(keras, file, directory, allow_code, custom)


def load_source(
    path: str | os.PathLike[str],
    *,
    allow_code: bool = False,
    custom_objects: Mapping[str, object] | None = None,
    signature: str = "",
) -> KerasModel | SavedModel:
    """Return what a conversion can start from at `path`: a Keras model, or a SavedModel without a Keras config.

    Args:
        path: As in `load_model`, or the directory of any SavedModel.
        allow_code: As in `load_model` and `load_saved_model`.
        custom_objects: As in `load_model`.
        signature: If it is not empty, a SavedModel is read as its graphs, even if it has a Keras config.

    Raises:
        InputError: As in `load_model` and `load_saved_model`.
    """
    is_saved_model = os.path.exists(os.path.join(path, "saved_model.pb"))
    if is_saved_model and (signature or is_exported(path)):
        return load_saved_model(path, allow_code=allow_code)
    return load_model(path, allow_code=allow_code, custom_objects=custom_objects)


@stage("loading the model")
def _load(keras: Any, file: ModelFile, directory: Path, allow_code: bool, custom: dict[str, Any]) -> Any:
    try:
        # A scope, because tf_keras does not pass the argument `custom_objects` on to the activations of an .h5 file.
        with keras.saving.custom_object_scope(custom):
            model = _build(keras, file, directory, allow_code)
    except TfqError:
        raise
    except Exception as error:
        # Keras nests its messages, each with a complete config. The cause comes last.
        reason = str(error).rpartition("Exception encountered: ")[2].strip().split("\n")[0][:500]
        advice = "Load the model in the environment that saved it, and save it again"
        if contains_tfmot(file.config) and file.container != "saved_model":
            advice += ". tfmot's cluster preserving quantization can only be saved as a SavedModel directory"
        raise InputError(
            f"{file.path}: {file.kind} {keras.__version__} cannot build this model, which Keras "
            f"{file.keras_version or '(unknown version)'} wrote ({type(error).__name__}: {reason}). {advice}",
            field="model",
            got=str(file.path),
        ) from error
    if not isinstance(model, keras.Model):
        raise InputError(
            f"{file.path}: expected a model, but Keras built a {type(model).__name__} from it",
            field="model",
            expected="a model",
            got=type(model).__name__,
        )
    if file.kind == "tf_keras":
        _refuse_lost_masks(file, model)
    if file.kind == "tf_keras" and getattr(model, "_output_layers", None):
        keep_names(model, model)  # the file only has the output names of tfmot's wrappers
    return model


def _refuse_lost_masks(file: ModelFile, model: Any) -> None:
    """Raise InputError for clusters that preserve zeros: tfmot (0.8.1) does not save which weights are zero."""
    names = [layer.name for layer in model.layers if wrapper_kind(layer) == CLUSTERED and layer.preserve_sparsity]
    if names:
        raise InputError(
            f"{file.path}: {', '.join(names)} are clustered by tfmot with preserve_sparsity, whose masks the file does "
            "not contain. Where the model was trained, call tfmot.clustering.keras.strip_clustering(model), and save "
            "the result",
            field="model",
            expected="a model without wrappers",
            got=tuple(names),
            limit="tfmot-masks",
        )


def _build(keras: Any, file: ModelFile, directory: Path, allow_code: bool) -> Any:
    if file.container == "saved_model":
        return _build_saved_model(keras, file, directory, allow_code)
    copy = directory / f"model.{file.container}"
    content = file.content
    if file.container == "h5" and file.kind == "tf_keras":
        content = _without_function_dicts(keras, file)
    artifacts.write_bytes(copy, content)
    if file.kind == "keras":
        return keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)
    with _tf_keras_scope(file, allow_code):
        return keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)


def _without_function_dicts(keras: Any, file: ModelFile) -> bytes:
    """Return an `.h5` file with the dict of each registered or provided function replaced by its name.

    tf_keras 2.21 writes such a dict, but its own .h5 loader expects the name of an activation there.
    """
    changed = False

    def replaced(node: Any) -> Any:
        nonlocal changed
        if isinstance(node, dict):
            name = node.get("config")
            is_function = node.get("class_name") == "function" and isinstance(name, str)
            if is_function and keras.saving.get_registered_object(name) is not None:
                changed = True
                return name
            return {key: replaced(value) for key, value in node.items()}
        return [replaced(item) for item in node] if isinstance(node, list) else node

    config = replaced(file.config)
    if not changed:
        return file.content
    return hdf5.with_attribute(str(file.path), file.content, "model_config", json.dumps(config))


def _build_saved_model(keras: Any, file: ModelFile, directory: Path, allow_code: bool) -> Any:
    """Build the model from the config, with the weights of the checkpoint. The saved graphs are never loaded."""
    for name, content in file.members.items():
        artifacts.write_bytes(directory / name, content)
    prefix = str(directory / "variables")
    _check_checkpoint(file, prefix)
    with _tf_keras_scope(file, allow_code):
        model = keras.models.model_from_json(model_json(file))
    if not model.built:
        raise InputError(
            f"{file.path} does not contain the shape of the model's input. Call the model once, and save it again",
            field="model",
            expected="an input shape",
            got=str(file.path),
            limit="never-built",
        )
    # The checkpoint must contain each variable of the model. Other variables (an optimizer's) are ignored.
    model.load_weights(prefix).assert_existing_objects_matched()
    return model


def _check_checkpoint(file: ModelFile, prefix: str) -> None:
    """Raise InputError if the checkpoint declares more bytes than tfq loads, before memory is allocated."""
    import tensorflow as tf

    checkpoint = tf.train.load_checkpoint(prefix)
    types = checkpoint.get_variable_to_dtype_map()
    declared = sum(
        types[name].size * math.prod(shape) for name, shape in checkpoint.get_variable_to_shape_map().items()
    )
    if declared > MAX_FILE_BYTES:
        raise InputError(
            f"{file.path}: its checkpoint declares {declared} bytes. tfq loads at most {MAX_FILE_BYTES}",
            field="model",
            expected=MAX_FILE_BYTES,
            got=declared,
            limit="large-files",
        )


@contextlib.contextmanager
def _tf_keras_scope(file: ModelFile, allow_code: bool) -> Iterator[None]:
    """Make tf_keras refuse lambdas unless code is allowed, and find tfmot's classes if the file contains any."""
    from tf_keras.src.saving import serialization_lib

    with contextlib.ExitStack() as scopes:
        scopes.enter_context(serialization_lib.SafeModeScope(not allow_code))
        if contains_tfmot(file.config):
            tfmot = import_tfmot()
            registered = import_tf_keras().saving.get_custom_objects()
            # tfmot's wrapper looks its inner layer up by the class name; Keras registers it as "tfq>NAME".
            by_class_name = {
                name.removeprefix("tfq>"): value for name, value in registered.items() if name.startswith("tfq>")
            }
            scopes.enter_context(tfmot.quantization.keras.quantize_scope(by_class_name))
            scopes.enter_context(tfmot.sparsity.keras.prune_scope())
            scopes.enter_context(import_tf_keras().utils.custom_object_scope(_cluster_classes()))
            scopes.enter_context(_tfmot_layers_built_once())
        yield


def _cluster_classes() -> dict[str, Any]:
    """Return tfmot's (0.8.1) wrappers of clustered layers; its cluster_scope lacks those of RNNs and attention."""
    module = importlib.import_module("tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper")
    return {name: getattr(module, name) for name in ("ClusterWeights", "ClusterWeightsRNN", "ClusterWeightsMHA")}


@contextlib.contextmanager
def _tfmot_layers_built_once() -> Iterator[None]:
    """Make the `.keras` loader give tfmot's layers (0.8.1) the same variables as in the saved model.

    The loader builds layers before their first call. QuantizeLayer does not record that, so it would be built again and
    have all of its variables twice. QuantizeWrapperV2 lists the weights of its inner layer only if that layer is built,
    which is the case when a model is prepared for training.
    """
    find = import_tf_keras().saving.get_registered_object
    layer, wrapper = find("QuantizeLayer"), find("QuantizeWrapperV2")
    build = wrapper.build

    def build_inner_layer_first(self: Any, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        build(self, input_shape)

    layer.build_from_config, wrapper.build = lambda self, config: None, build_inner_layer_first
    try:
        yield
    finally:
        del layer.build_from_config
        wrapper.build = build
