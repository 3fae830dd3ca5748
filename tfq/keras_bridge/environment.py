# SPDX-License-Identifier: Apache-2.0
"""The process-wide state of both Keras versions: environment variables, backends, random seeds, determinism.

Private symbols, read in TensorFlow 2.21.0, keras 3.15.1 and tf_keras 2.21.0:
    tensorflow.python.framework.config: is_op_determinism_enabled, disable_op_determinism
    tensorflow.python.eager.context: context()._seed and ._rng
    keras.src.backend.common.global_state: get_global_attribute, set_global_attribute
        of "global_random_seed" and "global_seed_generator"
    tf_keras.src.backend: _SEED_GENERATOR.generator

tfmot 0.8.1 sets TF_USE_LEGACY_KERAS=1 when it is imported and reads `tf.keras`, `tf.compat.v1.keras` and
`tf.compat.v2.keras`, which are lazy: whoever touches one first fixes which Keras it is for the whole process.
Here tfmot is shown tf_keras while it is imported, and then every one of these is what it was.

Private symbols: the modules `tf_keras.api._v1.keras` and `tf_keras.api._v2.keras`, read in tf_keras 2.21.0;
`_tfmw_wrapped_module` of tensorflow.python.util.module_wrapper, which stands for `tf.compat.v1`, in TensorFlow 2.21.0.
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
    """Within, Python, NumPy, TensorFlow and both Kerases draw from `seed` and TensorFlow's ops are deterministic.

    After, however the block ends, every state and the determinism switch are what they were before. Build and train
    inside it: the same calls give the same weights to the bit in any process on the same machine. Process-wide, so
    not for two threads at once.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(
            f"seed: expected a whole number from 0 to 2**32 - 1, got {seed!r}",
            field="seed",
            expected=(0, 2**32 - 1),
            got=seed,
        )
    import tensorflow as tf
    from tensorflow.python.framework import config as tf_config

    keras, tf_keras = import_keras(), import_tf_keras()
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
        _restore(before)


def _random_states() -> dict[str, Any]:
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context
    from tf_keras.src import backend

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - both Kerases seed the global generator
        "tensorflow": {name: vars(context.context()).get(name) for name in _TENSORFLOW_ATTRIBUTES},
        "keras": [global_state.get_global_attribute(name) for name in _KERAS_ATTRIBUTES],
        "tf_keras": getattr(backend._SEED_GENERATOR, "generator", None),
    }


def _restore(states: dict[str, Any]) -> None:
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
    """The module `tf_keras` (Keras 2). Raises TfqError when it is not installed."""
    with _lock, _environment_kept():
        return _imported("tf_keras", "tf-keras")


def import_keras() -> ModuleType:
    """The module `keras`, version 3 on the TensorFlow backend. Raises TfqError when it is another one, or missing."""
    with _lock, _environment_kept():
        keras = _imported("keras", "keras>=3")
        if not keras.__version__.startswith("3."):
            raise TfqError(
                f"`import keras` gives Keras {keras.__version__}, expected 3: pip install 'keras>=3'",
                field="keras",
                expected="3",
                got=keras.__version__,
            )
        if keras.config.backend() != "tensorflow":
            raise TfqError(
                f"Keras 3 runs on the {keras.config.backend()} backend, and .tflite comes from TensorFlow alone: "
                "set KERAS_BACKEND=tensorflow before keras is imported",
                field="KERAS_BACKEND",
                expected="tensorflow",
                got=keras.config.backend(),
            )
        return keras


def import_tfmot() -> ModuleType:
    """The module `tensorflow_model_optimization`, working on tf_keras. Raises TfqError when it cannot be imported."""
    with _lock, _environment_kept():
        if "tensorflow_model_optimization" not in sys.modules:
            _imported("tf_keras", "tf-keras")
            with _tf_keras_shown():
                _imported("tensorflow_model_optimization", "tensorflow-model-optimization")
        return sys.modules["tensorflow_model_optimization"]


def model_kind(model: Any) -> str:
    """Which Keras a live model belongs to: "tf_keras" or "keras". Raises InputError when it is no Keras model."""
    for kind in ("tf_keras", "keras"):
        module = sys.modules.get(kind)
        if module is not None and isinstance(model, module.Model):
            return kind
    raise InputError(
        f"wanted a tf_keras or Keras 3 model, got {type(model).__module__}.{type(model).__qualname__}",
        field="model",
        expected=("tf_keras", "keras"),
        got=f"{type(model).__module__}.{type(model).__qualname__}",
    )


def require_tf_keras(model: Any, what: str) -> None:
    """Raises InputError unless `model` is a tf_keras model; `what` is the operation that needs one ("pruning")."""
    if model_kind(model) != "tf_keras":
        raise InputError(
            f"{what} takes a tf_keras model, got the Keras 3 model {model.name!r}: give tfq.to_tf_keras(model).model, "
            "and have the trained weights back by tfq.return_weights",
            field="model",
            expected="tf_keras",
            got=model.name,
        )


def _imported(name: str, package: str) -> ModuleType:
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
def _environment_kept() -> Iterator[None]:
    before = os.environ.get(LEGACY_VARIABLE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LEGACY_VARIABLE, None)
        else:
            os.environ[LEGACY_VARIABLE] = before


@contextlib.contextmanager
def _tf_keras_shown() -> Iterator[None]:
    """Within, `tf.keras` and its two compat siblings are tf_keras; after, they are the very objects that they were."""
    import tensorflow as tf

    v1 = importlib.import_module("tf_keras.api._v1.keras")
    v2 = importlib.import_module("tf_keras.api._v2.keras")
    shown = [(tf, v2), (tf.compat.v1, v1), (tf.compat.v2, v2)]
    # Through vars(), for an attribute access would make TensorFlow's lazy loader decide.
    before = [(namespace, vars(namespace)["keras"], vars(_wrapped(namespace))["keras"]) for namespace, _ in shown]
    try:
        for namespace, module in shown:
            namespace.keras = module
        yield
    finally:
        for namespace, keras, wrapped_keras in before:
            # By setattr, which also fixes the cache that a wrapper keeps of attributes once looked at.
            namespace.keras = keras
            vars(_wrapped(namespace))["keras"] = wrapped_keras


def _wrapped(namespace: ModuleType) -> ModuleType:
    return vars(namespace).get("_tfmw_wrapped_module", namespace)
