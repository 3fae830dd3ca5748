# SPDX-License-Identifier: Apache-2.0
"""The process-wide state of both Keras versions: environment variables, backends, random seeds, determinism.

tfmot 0.8.1 sets TF_USE_LEGACY_KERAS=1 when it is imported and reads `tf.keras`, `tf.compat.v1.keras` and
`tf.compat.v2.keras`. These are loaded lazily: the first access decides for the process which Keras they are. This
module replaces them by tf_keras while tfmot is imported, and restores them afterwards.

Private symbols, read in TensorFlow 2.21.0, keras 3.15.1 and tf_keras 2.21.0:

- tensorflow.python.framework.config: is_op_determinism_enabled, disable_op_determinism
- tensorflow.python.eager.context: context()._seed and ._rng
- tensorflow.python.util.module_wrapper: _tfmw_wrapped_module, the module that the wrapper `tf.compat.v1` represents
- keras.src.backend.common.global_state: get_global_attribute and set_global_attribute of "global_random_seed" and
  "global_seed_generator"
- tf_keras.src.backend: _SEED_GENERATOR.generator
- tf_keras.api._v1.keras and tf_keras.api._v2.keras, the modules
"""

import contextlib
import importlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from tfq import progress
from tfq.errors import InputError, TfqError, install_hint

_TENSORFLOW_ATTRIBUTES = ("_seed", "_rng")
_KERAS_ATTRIBUTES = ("global_random_seed", "global_seed_generator")


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed Python, NumPy, TensorFlow and both Keras versions, and make TensorFlow's ops deterministic.

    At the end of the block, every random state and the determinism setting are restored. If a model is built and
    trained in the block, the same calls give bit-identical weights in any process on the same machine. The setting
    applies to the whole process, so two threads must not use it at the same time.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(
            f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}",
            field="seed",
            expected=(0, 2**32 - 1),
            got=seed,
        )
    keras, tf_keras = import_keras(), import_tf_keras()  # first, because they silence TensorFlow's log
    import tensorflow as tf
    from tensorflow.python.framework import config as tf_config

    was_deterministic = tf_config.is_op_determinism_enabled()
    before = _random_states()
    try:
        keras.utils.set_random_seed(seed)
        tf_keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        yield
    finally:
        if not was_deterministic:
            tf_config.disable_op_determinism()
        _restore_random_states(before)


def _random_states() -> dict[str, Any]:
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context
    from tf_keras.src import backend

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - both Keras versions seed the global generator
        "tensorflow": {name: vars(context.context()).get(name) for name in _TENSORFLOW_ATTRIBUTES},
        "keras": [global_state.get_global_attribute(name) for name in _KERAS_ATTRIBUTES],
        "tf_keras": getattr(backend._SEED_GENERATOR, "generator", None),
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context
    from tf_keras.src import backend

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    vars(context.context()).update(states["tensorflow"])
    for name, value in zip(_KERAS_ATTRIBUTES, states["keras"], strict=True):
        global_state.set_global_attribute(name, value)
    if states["tf_keras"] is None:
        backend._SEED_GENERATOR.__dict__.pop("generator", None)
    else:
        backend._SEED_GENERATOR.generator = states["tf_keras"]


LEGACY_VARIABLE = "TF_USE_LEGACY_KERAS"

_lock = threading.RLock()


def import_tensorflow() -> ModuleType:
    """Return the module `tensorflow`.

    Raises:
        TfqError: It cannot be imported.
    """
    try:
        return progress.import_tensorflow()
    except ImportError as error:
        raise TfqError(
            f"TensorFlow cannot be imported ({error}): {install_hint()}",
            field="tensorflow",
            expected="an installed package",
        ) from error


def import_tf_keras() -> ModuleType:
    """Return the module `tf_keras` (Keras 2).

    Raises:
        TfqError: It is not installed.
    """
    with _lock, _preserved_environment():
        return _import("tf_keras", "tf-keras")


def import_keras() -> ModuleType:
    """Return the module `keras`, version 3 on the TensorFlow backend.

    Raises:
        TfqError: It is another version, has another backend, or is not installed.
    """
    with _lock, _preserved_environment():
        keras = _import("keras", "keras>=3")
        if not keras.__version__.startswith("3."):
            raise TfqError(
                f"expected Keras 3 from `import keras`, got {keras.__version__}: pip install 'keras>=3'",
                field="keras",
                expected="3",
                got=keras.__version__,
            )
        if keras.config.backend() != "tensorflow":
            raise TfqError(
                f"expected Keras 3 on the TensorFlow backend, which conversion to .tflite requires, got the backend "
                f"{keras.config.backend()}. Set KERAS_BACKEND=tensorflow before keras is imported",
                field="KERAS_BACKEND",
                expected="tensorflow",
                got=keras.config.backend(),
            )
        return keras


def import_tfmot() -> ModuleType:
    """Return the module `tensorflow_model_optimization`, which uses tf_keras.

    Raises:
        TfqError: It cannot be imported.
    """
    with _lock, _preserved_environment():
        if "tensorflow_model_optimization" not in sys.modules:
            _import("tf_keras", "tf-keras")
            with _tf_keras_as_tf_dot_keras():
                _import("tensorflow_model_optimization", "tensorflow-model-optimization")
        return sys.modules["tensorflow_model_optimization"]


def model_kind(model: Any) -> str:
    """Return the Keras version of a live model: "tf_keras" or "keras".

    Raises:
        InputError: It is not a Keras model.
    """
    for kind in ("tf_keras", "keras"):
        module = sys.modules.get(kind)
        if module is not None and isinstance(model, module.Model):
            return kind
    from tfq.keras_bridge.loading.saved_model import SavedModel

    if isinstance(model, SavedModel):
        raise InputError(
            f"{model.path} is a SavedModel without a Keras config, which has no layers to compress or train. It can "
            "only be converted: pass the Keras model that it was exported from",
            field="model",
            expected=("tf_keras", "keras"),
            got="SavedModel",
            limit="exported-model",
        )
    raise InputError(
        f"expected a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__qualname__}",
        field="model",
        expected=("tf_keras", "keras"),
        got=f"{type(model).__module__}.{type(model).__qualname__}",
    )


def require_tf_keras(model: Any, what: str) -> None:
    """Raise InputError unless `model` is a tf_keras model; `what` is the operation that needs one ("pruning")."""
    if model_kind(model) != "tf_keras":
        raise InputError(
            f"{what} needs a tf_keras model, got the Keras 3 model {model.name!r}. Pass tfq.to_tf_keras(model).model, "
            "and copy the trained weights back with tfq.return_weights",
            field="model",
            expected="tf_keras",
            got=model.name,
        )


def _import(name: str, package: str) -> ModuleType:
    import_tensorflow()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "distutils":
            raise TfqError(
                f"{name} imports distutils, which Python 3.12 removed: pip install setuptools",
                field="setuptools",
                expected="an installed package",
            ) from error
        raise TfqError(
            f"{name} cannot be imported ({error}): pip install '{package}'",
            field=package,
            expected="an installed package",
        ) from error


@contextlib.contextmanager
def _preserved_environment() -> Iterator[None]:
    before = os.environ.get(LEGACY_VARIABLE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LEGACY_VARIABLE, None)
        else:
            os.environ[LEGACY_VARIABLE] = before


@contextlib.contextmanager
def _tf_keras_as_tf_dot_keras() -> Iterator[None]:
    """Make `tf.keras`, `tf.compat.v1.keras` and `tf.compat.v2.keras` tf_keras; restore the same objects at the end."""
    import tensorflow as tf

    v1 = importlib.import_module("tf_keras.api._v1.keras")
    v2 = importlib.import_module("tf_keras.api._v2.keras")
    replacements = [(tf, v2), (tf.compat.v1, v1), (tf.compat.v2, v2)]
    # Reads vars(), because an attribute access would make TensorFlow's lazy loader decide.
    before = [
        (namespace, vars(namespace)["keras"], vars(_wrapped_module(namespace))["keras"])
        for namespace, _ in replacements
    ]
    try:
        for namespace, module in replacements:
            namespace.keras = module
        yield
    finally:
        for namespace, keras, wrapped_keras in before:
            # Uses setattr, which also updates the wrapper's cache of accessed attributes.
            namespace.keras = keras
            vars(_wrapped_module(namespace))["keras"] = wrapped_keras


def _wrapped_module(namespace: ModuleType) -> ModuleType:
    return vars(namespace).get("_tfmw_wrapped_module", namespace)
