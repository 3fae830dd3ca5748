# SPDX-License-Identifier: Apache-2.0
"""Load a Keras model file with the Keras that wrote it, after a look at what is in it.

Private symbol: tf_keras.src.saving.serialization_lib.SafeModeScope, read in tf_keras 2.21.0. Its `.h5` loader leaves
safe mode unset, and then runs the bytecode of Lambda layers.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras, import_tfmot
from tfq.keras_bridge.inspection import holds_tfmot, refuse_code
from tfq.keras_bridge.model_file import ModelFile, read_model_file


def load_model(path: str | os.PathLike, *, allow_code: bool = False) -> Any:
    """The model in a `.keras` or `.h5` file: a tf_keras model if Keras 1 or 2 wrote it, a Keras 3 one if Keras 3 did.

    Never compiled, so custom losses and metrics are not needed. The format and the Keras are told by what is in the
    file, not by its name. allow_code: let Lambda layers and classes that the file names run; without it a file that
    holds any is refused, before TensorFlow or Keras has seen it.
    Raises InputError when the file is no Keras model, holds code, or Keras cannot build it.
    """
    file = read_model_file(path)
    keras = import_tf_keras() if file.kind == "tf_keras" else import_keras()
    if not allow_code:
        refuse_code(file, frozenset(keras.saving.get_custom_objects()))
    # A copy of the bytes that were looked at, so that nobody can change them between looking and loading, and under
    # the suffix that Keras routes by.
    with tempfile.TemporaryDirectory(prefix="tfq-") as directory:
        copy = Path(directory) / f"model.{file.container}"
        copy.write_bytes(file.content)
        return _loaded(keras, file, copy, allow_code)


def _loaded(keras: Any, file: ModelFile, copy: Path, allow_code: bool) -> Any:
    import tensorflow as tf

    failures: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
    failures += (ImportError, OSError, tf.errors.OpError)
    try:
        if file.kind == "keras":
            model = keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)
        else:
            from tf_keras.src.saving import serialization_lib

            with serialization_lib.SafeModeScope(not allow_code), _tfmot_scope(file):
                model = keras.saving.load_model(copy, compile=False, safe_mode=not allow_code)
    except failures as error:
        # Keras nests its messages, each with a whole config in it, and the cause comes last.
        reason = str(error).rpartition("Exception encountered: ")[2].strip().split("\n")[0][:500]
        raise InputError(
            f"{file.path}: {file.kind} {keras.__version__} cannot build this model, written by Keras "
            f"{file.keras_version or '(unknown)'} ({type(error).__name__}: {reason}): load it where it was made, and "
            "save it again"
        ) from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{file.path}: Keras built a {type(model).__name__} from it: wanted a model")
    return model


@contextlib.contextmanager
def _tfmot_scope(file: ModelFile) -> Iterator[None]:
    """tfmot's classes are found inside, where the file holds any."""
    if not holds_tfmot(file.config):
        yield
        return
    tfmot = import_tfmot()
    with tfmot.quantization.keras.quantize_scope(), tfmot.sparsity.keras.prune_scope():
        yield
