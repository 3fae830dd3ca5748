# SPDX-License-Identifier: Apache-2.0
"""Every random state that a training draws from, and TensorFlow's op determinism: set for a scope, then put back.

Private symbols, read in TensorFlow 2.21.0, keras 3.15.1 and tf_keras 2.21.0:
    tensorflow.python.framework.config: is_op_determinism_enabled, disable_op_determinism
    tensorflow.python.eager.context: context()._seed and ._rng
    keras.src.backend.common.global_state: get_global_attribute, set_global_attribute
        of "global_random_seed" and "global_seed_generator"
    tf_keras.src.backend: _SEED_GENERATOR.generator
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras

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
        raise InputError(f"seed: wanted a whole number from 0 to 2**32 - 1, got {seed!r}")
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
