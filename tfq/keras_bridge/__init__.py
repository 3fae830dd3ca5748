# SPDX-License-Identifier: Apache-2.0
"""Bridge between Keras 3 and tf_keras: import both, load files of either, translate models, seed both.

No other package depends on both Keras versions. Importing this package imports neither TensorFlow nor Keras; its
functions import them when they are called.
"""

from tfq.keras_bridge.bridge import BridgeResult, return_weights, to_tf_keras
from tfq.keras_bridge.environment import (
    deterministic,
    import_keras,
    import_tensorflow,
    import_tf_keras,
    import_tfmot,
    model_kind,
    require_tf_keras,
)
from tfq.keras_bridge.layers.bridged_layer import BridgedLayer, Translation, TranslationContext
from tfq.keras_bridge.loading.custom_objects import custom_objects_of_plugins
from tfq.keras_bridge.loading.load import load_model, load_source
from tfq.keras_bridge.loading.saved_model import SavedModel, load_saved_model
from tfq.keras_bridge.rebuild import UnbridgeableError
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.keras_bridge.walk import why_no_graph

__all__ = [
    "BridgeResult",
    "BridgedLayer",
    "SavedModel",
    "Translation",
    "TranslationContext",
    "UnbridgeableError",
    "Untranslatable",
    "custom_objects_of_plugins",
    "deterministic",
    "import_keras",
    "import_tensorflow",
    "import_tf_keras",
    "import_tfmot",
    "load_model",
    "load_saved_model",
    "load_source",
    "model_kind",
    "require_tf_keras",
    "return_weights",
    "to_tf_keras",
    "why_no_graph",
]
