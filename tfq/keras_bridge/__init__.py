# SPDX-License-Identifier: Apache-2.0
"""The only room that knows two Kerases: imports them side by side, loads either's files, seeds both.

Importing this room imports neither TensorFlow nor a Keras; its functions do, when they are called.
"""

from tfq.keras_bridge.environment import import_keras, import_tf_keras, import_tfmot, model_kind, require_tf_keras
from tfq.keras_bridge.loading import load_model
from tfq.keras_bridge.random_state import deterministic

__all__ = [
    "deterministic",
    "import_keras",
    "import_tf_keras",
    "import_tfmot",
    "load_model",
    "model_kind",
    "require_tf_keras",
]
