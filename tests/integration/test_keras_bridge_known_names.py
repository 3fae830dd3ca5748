# SPDX-License-Identifier: Apache-2.0
"""The allow-list of safe loading compared with the exports of the installed Kerases and tfmot."""

import inspect
import re

from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.keras_bridge.loading.custom_objects import CLASSES, FUNCTIONS, REFUSED_CLASSES


def classes_of(*modules):
    return {name for module in modules for name, value in vars(module).items() if inspect.isclass(value)}


def test_every_class_that_the_two_kerases_export_is_decided_upon():
    keras, tf_keras = import_keras(), import_tf_keras()
    exported = set()
    for module in (keras, tf_keras):
        exported |= classes_of(module.layers, module.initializers, module.regularizers, module.constraints)
        exported |= classes_of(
            module.optimizers, module.optimizers.schedules, module.losses, module.metrics, module.models
        )
    exported |= classes_of(keras.dtype_policies, keras.quantizers, tf_keras.mixed_precision)
    undecided = exported - CLASSES - set(REFUSED_CLASSES)
    assert not undecided, f"new in Keras: put each in CLASSES or REFUSED_CLASSES of known_names.py: {undecided}"
    assert not CLASSES & set(REFUSED_CLASSES)


def test_every_activation_that_the_two_kerases_export_is_known():
    for module in (import_keras().activations, import_tf_keras().activations):
        names = {name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")}
        assert names - {"get", "serialize", "deserialize"} <= FUNCTIONS


def test_known_functions_are_keras_own_and_nothing_that_touches_files():
    assert not [name for name in FUNCTIONS if re.search("file|load|save|eval|exec|import|unsafe", name)]


def test_allowed_tfmot_classes_are_those_that_it_registers():
    from tf_keras.src.saving import object_registration

    from tfq.keras_bridge import import_tfmot
    from tfq.keras_bridge.loading import custom_objects

    tfmot = import_tfmot()
    quantization, pruning, clustering = tfmot.quantization.keras, tfmot.sparsity.keras, tfmot.clustering.keras
    with quantization.quantize_scope(), pruning.prune_scope(), clustering.cluster_scope():
        registered = {name for name in vars(object_registration._THREAD_LOCAL_CUSTOM_OBJECTS) if "NBit" not in name}
    unregistered = {"ConstantSparsity", "ClusterWeightsRNN", "ClusterWeightsMHA"}
    assert registered | unregistered == custom_objects.TFMOT_CLASSES
