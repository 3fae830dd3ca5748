# SPDX-License-Identifier: Apache-2.0
"""Load a Keras model with the Keras that wrote it, after a look at what is in it.

Private symbol: tf_keras.src.saving.serialization_lib.SafeModeScope, read in tf_keras 2.21.0. Its `.h5` loader leaves
safe mode unset, and then runs the bytecode of Lambda layers.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.copies import keep_names
from tfq.keras_bridge.environment import import_keras, import_tf_keras, import_tfmot, model_kind
from tfq.keras_bridge.layers.own import register_own
from tfq.keras_bridge.loading.inspection import holds_tfmot, refuse_code, refuse_impossible_sizes
from tfq.keras_bridge.loading.model_file import MAX_FILE_BYTES, ModelFile, read_model_file, rebuilt_json
from tfq.keras_bridge.operations.keras_operation import keras_operation_class
from tfq.keras_bridge.quantize_configs import quantize_config_classes
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
        # Each registers what it makes: a bridged model's file may hold some.
        keras_operation_class()
        register_own()
        if holds_tfmot(file.config):
            quantize_config_classes()
    custom = dict(custom_objects or {})
    if not allow_code:
        refuse_code(file, frozenset(keras.saving.get_custom_objects()) | frozenset(custom))
    refuse_impossible_sizes(file)
    # A copy of the bytes that were looked at, so that nobody can change them between looking and loading, and under
    # the suffix that Keras routes by.
    with tempfile.TemporaryDirectory(prefix="tfq-") as directory:
        return _loaded(keras, file, Path(directory), allow_code, custom)


def _loaded(keras: Any, file: ModelFile, directory: Path, allow_code: bool, custom: dict[str, Any]) -> Any:
    import tensorflow as tf

    failures: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
    failures += (ImportError, OSError, AssertionError, MemoryError, ArithmeticError, tf.errors.OpError)
    try:
        # As a scope: tf_keras does not hand the argument on to the functions in an .h5's activations.
        with keras.saving.custom_object_scope(custom):
            model = _built(keras, file, directory, allow_code)
    except InputError:
        raise
    except failures as error:
        # Keras nests its messages, each with a whole config in it, and the cause comes last.
        reason = str(error).rpartition("Exception encountered: ")[2].strip().split("\n")[0][:500]
        raise InputError(
            f"{file.path}: {file.kind} {keras.__version__} cannot build this model, written by Keras "
            f"{file.keras_version or '(unknown)'} ({type(error).__name__}: {reason}): load it where it was made, and "
            "save it again",
            field="model",
            got=str(file.path),
        ) from error
    if not isinstance(model, keras.Model):
        raise InputError(
            f"{file.path}: Keras built a {type(model).__name__} from it: expected a model",
            field="model",
            expected="a model",
            got=type(model).__name__,
        )
    if file.kind == "tf_keras" and getattr(model, "_output_layers", None):
        keep_names(model, model)  # a file has no names of outputs but those of tfmot's wrappers
    return model


def _built(keras: Any, file: ModelFile, directory: Path, allow_code: bool) -> Any:
    if file.container == "saved_model":
        return _of_saved_model(keras, file, directory, allow_code)
    copy = directory / f"model.{file.container}"
    copy.write_bytes(file.content)
    if file.container == "h5" and file.kind == "tf_keras":
        _name_functions(keras, file, copy)
    if file.kind == "keras":
        return keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)
    with _tf_keras_scope(file, allow_code):
        return keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)


def _name_functions(keras: Any, file: ModelFile, copy: Path) -> None:
    """In the copy of an `.h5`, the bare name in place of each function that is registered or given.

    tf_keras 2.21 writes a dict there, which its own .h5 loader takes for the name of an activation.
    """
    import h5py

    found = False

    def named(node: Any) -> Any:
        nonlocal found
        if isinstance(node, dict):
            name = node.get("config")
            is_function = node.get("class_name") == "function" and isinstance(name, str)
            if is_function and keras.saving.get_registered_object(name) is not None:
                found = True
                return name
            return {key: named(value) for key, value in node.items()}
        return [named(item) for item in node] if isinstance(node, list) else node

    config = named(file.config)
    if found:
        with h5py.File(copy, "r+") as opened:
            opened.attrs["model_config"] = json.dumps(config)


def _of_saved_model(keras: Any, file: ModelFile, directory: Path, allow_code: bool) -> Any:
    """Rebuilt from the config, with the weights of the checkpoint; the saved graphs are never loaded."""
    for name, content in file.members.items():
        (directory / name).write_bytes(content)
    prefix = str(directory / "variables")
    _check_checkpoint(file, prefix)
    with _tf_keras_scope(file, allow_code):
        model = keras.models.model_from_json(rebuilt_json(file))
    if not model.built:
        raise InputError(
            f"{file.path}: the shape of its input is not in it: call the model once, and save it again",
            field="model",
            expected="an input shape",
            got=str(file.path),
        )
    # Each variable of the model must be in the checkpoint; what else is there (an optimizer's) is left.
    model.load_weights(prefix).assert_existing_objects_matched()
    return model


def _check_checkpoint(file: ModelFile, prefix: str) -> None:
    """Refuse tensors declared larger than tfq loads, before any memory is asked for."""
    import tensorflow as tf

    checkpoint = tf.train.load_checkpoint(prefix)
    types = checkpoint.get_variable_to_dtype_map()
    declared = sum(
        types[name].size * math.prod(shape) for name, shape in checkpoint.get_variable_to_shape_map().items()
    )
    if declared > MAX_FILE_BYTES:
        raise InputError(
            f"{file.path}: its checkpoint declares {declared} bytes: more than the {MAX_FILE_BYTES} allowed",
            field="model",
            expected=MAX_FILE_BYTES,
            got=declared,
        )


@contextlib.contextmanager
def _tf_keras_scope(file: ModelFile, allow_code: bool) -> Iterator[None]:
    """Inside, tf_keras refuses lambdas unless code is allowed, and finds tfmot's classes where the file holds any."""
    from tf_keras.src.saving import serialization_lib

    with contextlib.ExitStack() as scopes:
        scopes.enter_context(serialization_lib.SafeModeScope(not allow_code))
        if holds_tfmot(file.config):
            tfmot = import_tfmot()
            registered = import_tf_keras().saving.get_custom_objects()
            # tfmot's wrapper looks the layer inside up by its class's own name, where Keras goes by "tfq>NAME".
            ours = {name.removeprefix("tfq>"): value for name, value in registered.items() if name.startswith("tfq>")}
            scopes.enter_context(tfmot.quantization.keras.quantize_scope(ours))
            scopes.enter_context(tfmot.sparsity.keras.prune_scope())
            scopes.enter_context(_with_the_variables_that_were_saved())
        yield


@contextlib.contextmanager
def _with_the_variables_that_were_saved() -> Iterator[None]:
    """Inside, the `.keras` loader gives tfmot's layers (0.8.1) the variables that they had in the model that was saved.

    It builds layers ahead of their first call. QuantizeLayer does not note that, and is built once more, with all its
    variables twice; and QuantizeWrapperV2 lists the weights of the layer inside only if that is built already, as it is
    where a model is made ready for training.
    """
    find = import_tf_keras().saving.get_registered_object
    layer, wrapper = find("QuantizeLayer"), find("QuantizeWrapperV2")
    build = wrapper.build

    def build_inside_out(self: Any, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        build(self, input_shape)

    layer.build_from_config, wrapper.build = lambda self, config: None, build_inside_out
    try:
        yield
    finally:
        del layer.build_from_config
        wrapper.build = build
