# SPDX-License-Identifier: Apache-2.0
"""tfq wraps layers as tfmot's quantize_apply does: the same layers, names, variables, ranges and connections."""

import importlib

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.gate import check_same_function
from tfq.compression.graph import cloned
from tfq.compression.qat import placement, qat
from tfq.compression.training import deterministic
from tfq.config import QATConfig
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras, import_tfmot, to_tf_keras
from tfq.keras_bridge.quantize_configs import quantize_config_classes

KERAS = "tensorflow_model_optimization.python.core.quantization.keras"


def tfmot_module(name):
    import_tfmot()
    return importlib.import_module(f"{KERAS}.{name}")


def by_quantize_apply(model):
    """Return a model with fake quantization by tfmot's quantize_apply, with the placements of tfq.

    Only one of the graph transforms of tfmot runs, which quantizes inputs.
    """
    clone, _ = cloned(model)
    placements = qat.selected_placements(clone, QATConfig())
    inputs = placement.quantized_inputs(clone, placements)
    classes = quantize_config_classes()
    transformer = tfmot_module("graph_transformations.model_transformer").ModelTransformer
    transforms = tfmot_module("default_8bit.default_8bit_transforms")

    class InputsOnly(tfmot_module("quantize_layout_transform").QuantizeLayoutTransform):
        def apply(self, model, layer_quantize_map):
            if not inputs:  # tfmot takes an empty set of candidates as all layers
                return model, layer_quantize_map
            return transformer(model, [transforms.InputLayerQuantize()], set(inputs), layer_quantize_map).transform()

    class NothingByDefault(tfmot_module("default_8bit.default_8bit_quantize_registry").Default8BitQuantizeRegistry):
        def supports(self, layer):
            return False

    class Scheme(tfmot_module("default_8bit.default_8bit_quantize_scheme").Default8BitQuantizeScheme):
        def get_layout_transformer(self):
            return InputsOnly()

        def get_quantize_registry(self):
            return NothingByDefault()

    def annotated(old, new):
        place = placements[old.name]
        if isinstance(place, str) or not (place.config or place.stand_in or old.weights):
            return new
        if place.stand_in:
            new = classes[place.stand_in].from_config(new.get_config())
        config = classes["LayerQuantizeConfig"](**(place.config or {}))
        return import_tfmot().quantization.keras.quantize_annotate_layer(new, config)

    avoid = [layer.name for layer in clone.layers]
    with qat._scope(clone), tfmot_symbols.automatic_names_from_zero(avoid=avoid):
        wrapped, _ = cloned(clone, annotated)
        return import_tfmot().quantization.keras.quantize_apply(wrapped, Scheme())


def convolutional():
    """A stem with normalization, a padded depthwise convolution, a residual sum, a swish and a concatenation."""
    layers = import_tf_keras().layers
    image = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="relu6")(layers.BatchNormalization(name="bn")(x))
    y = layers.DepthwiseConv2D(3, name="depthwise")(layers.ZeroPadding2D(name="pad")(x))
    y = layers.Activation("swish", name="swish")(layers.BatchNormalization(name="bn_2")(y))
    x = layers.Add(name="sum")([x, y])
    x = layers.Concatenate(name="join")([layers.Conv2D(4, 1, activation="swish", name="side")(x), x])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return image, [layers.Dense(3, "softmax", name="head")(x)]


def separable():
    layers = import_tf_keras().layers
    image = layers.Input((8, 8, 3), name="image")
    x = layers.SeparableConv2D(4, 3, activation="relu", name="conv2d")(image)
    x = layers.Conv2DTranspose(4, 3, name="up")(layers.Dropout(0.5, name="drop")(x))
    return image, [layers.Flatten(name="flat")(x), layers.BatchNormalization(name="alone")(x)]


def shared():
    """Two inputs, layers that are called twice, and an operation."""
    layers = import_tf_keras().layers
    left, right = layers.Input((6,), name="left"), layers.Input((6,), name="right")
    dense, relu = layers.Dense(6, name="dense"), layers.ReLU(name="relu")
    x, y = relu(dense(left)), relu(dense(right))
    return [left, right], [layers.Dense(2, name="head")(layers.Concatenate(name="join")([y, x, x * 2.0]))]


def indices():
    """An integer input, whose values are not quantized, and an output of the model that another layer reads."""
    layers = import_tf_keras().layers
    words = layers.Input((5,), dtype="int32", name="words")
    x = layers.Embedding(7, 4, name="embedding")(words)
    x = layers.Conv1D(4, 3, activation="relu", name="conv")(x)
    return words, [x, layers.Dense(2, activation="sigmoid", name="head")(layers.Flatten(name="flat")(x))]


def nested():
    """A residual block that is a model inside the model, which is flattened."""
    layers, keras = import_tf_keras().layers, import_tf_keras()
    inner = layers.Input((6, 6, 4))
    block = keras.Model(inner, layers.ReLU(name="relu")(layers.Conv2D(4, 3, padding="same", name="conv")(inner)))
    image = layers.Input((6, 6, 4), name="image")
    x = layers.Add(name="sum")([image, block(image)])
    model = keras.Model(image, layers.AveragePooling2D(name="pool")(x))
    flat = to_tf_keras(model).model
    return flat.input, [flat.output]


def built(graph):
    keras = import_tf_keras()
    with deterministic(0):
        model = keras.Model(*graph(), name=graph.__name__)
        rng = np.random.default_rng(0)
        model.set_weights([rng.uniform(0.5, 1.5, value.shape) for value in model.get_weights()])
    return model


def connections(model):
    """Return the calls of each layer: the names of the layers that it reads, and its other arguments."""
    import tensorflow as tf

    own = {id(tensor) for tensor in model.inputs}
    result = []
    for layer in model.layers:
        for node in layer.inbound_nodes:
            reads = [(item._keras_history.layer.name, item._keras_history.tensor_index) for item in node.keras_inputs]
            known = all(id(item) in own for item in node.keras_inputs)
            if known and node.keras_inputs:
                own.update(id(item) for item in tf.nest.flatten(node.outputs))
                shapes = [(item.shape.as_list(), item.dtype) for item in tf.nest.flatten(node.outputs)]
                constants = [
                    item for item in tf.nest.flatten((node.call_args, node.call_kwargs)) if id(item) not in own
                ]
                result.append((layer.name, reads, shapes, repr(constants)))
    return result


def description(model):
    """Return all that defines a model but the values of its weights."""
    layers = [
        {
            "name": layer.name,
            "class": type(layer).__name__,
            "config": repr(layer.get_config()),
            "trainable": [(weight.name, weight.shape.as_list(), weight.dtype) for weight in layer.trainable_weights],
            "fixed": [(weight.name, weight.shape.as_list(), weight.dtype) for weight in layer.non_trainable_weights],
        }
        for layer in model.layers
    ]
    return {
        "class": type(model),
        "name": model.name,
        "layers": layers,
        "calls": connections(model),
        "inputs": [(tensor.name, tensor.shape.as_list()) for tensor in model.inputs],
        "outputs": [(tensor._keras_history.layer.name, tensor.shape.as_list()) for tensor in model.outputs],
        "ranges": [
            (place.layer, type(place.quantizer), place.attribute, [sorted(pair) for pair in place.ranges])
            for place in tfmot_symbols.activation_quantizers(model)
        ],
        "weights": [
            (layer, weight.name, type(quantizer)) for layer, weight, quantizer, _ in tfmot_symbols.weight_ranges(model)
        ],
    }


def without_scopes(description):
    layers = [
        layer
        | {key: [(name.rpartition("/")[2], *others) for name, *others in layer[key]] for key in ("trainable", "fixed")}
        for layer in description["layers"]
    ]
    weights = [(layer, name.rpartition("/")[2], quantizer) for layer, name, quantizer in description["weights"]]
    return description | {"layers": layers, "weights": weights}


@pytest.mark.parametrize("graph", [convolutional, separable, shared, nested, indices], ids=lambda graph: graph.__name__)
def test_wrapped_model_is_the_one_of_quantize_apply(graph):
    model = built(graph)
    expected, result = by_quantize_apply(model), qat.quantized(model).model
    theirs, ours = description(expected), description(result)
    if graph is indices:
        # tfmot names the weights of all layers "kernel:0" if no input is quantized. HDF5 files cannot hold the
        # optimizer of such a model.
        assert len({weight.name for weight in result.weights}) == len(result.weights) == len(expected.weights)
        ours, theirs = without_scopes(ours), without_scopes(theirs)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key] == theirs[key], key
    for ours, theirs in zip(result.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, ours.name)


def test_a_changed_model_is_described_differently():
    keras = import_tf_keras()
    first = keras.Model(*convolutional())
    same, other = (qat.quantized(model).model for model in (first, first))
    assert description(same) == description(other)
    other.layers[1].quantizer.num_bits = 4
    other.layers[3].layer.trainable = False
    assert description(same)["layers"] != description(other)["layers"]
    assert description(qat.quantized(keras.Model(*separable())).model)["calls"] != description(same)["calls"]


def test_wrappers_are_called_in_a_graph_after_the_model_is_built():
    layer = import_tf_keras().layers.Layer
    wrapper = tfmot_module("quantize_wrapper").QuantizeWrapperV2
    with tfmot_symbols.shapes_of_wrapped_layers():
        assert wrapper._infer_output_signature is not layer._infer_output_signature
    assert wrapper._infer_output_signature is layer._infer_output_signature
    assert all(callable(getattr(layer, name)) for name in ("_maybe_build", "_set_save_spec", "_name_scope"))


def test_unmodified_tfmot_changes_the_order_of_concatenated_inputs():
    layers, keras = import_tf_keras().layers, import_tf_keras()
    with deterministic(0):
        image = layers.Input((6, 6, 2), name="image")
        fused = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="fused")(image))
        join = layers.Concatenate(name="join")(
            [layers.ReLU(name="relu")(fused), layers.Conv2D(4, 1, name="plain")(image)]
        )
        model = keras.Model(image, layers.Dense(3, name="head")(layers.Flatten(name="flatten")(join)))
    with refused(TfqError, field="model"):
        check_same_function(model, import_tfmot().quantization.keras.quantize_model(model))
    check_same_function(model, qat.quantized(model).model)


def test_layers_that_tfmot_cannot_clone_are_trained():
    tf_keras = import_tf_keras()

    class Scaled(tf_keras.layers.Layer):  # without get_config
        def __init__(self, factor):
            super().__init__(name="scaled")
            self.factor = factor

        def call(self, x):
            return x * self.factor

    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(Scaled(2.0)(inputs)))
    inputs_of_4 = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype("float32")

    def fit(quantized, callbacks):
        quantized.compile("sgd", "mse")
        quantized.fit(inputs_of_4, model.predict(inputs_of_4, verbose=0), verbose=0, callbacks=callbacks)

    trained = tfq.qat(model, fit, calibration=inputs_of_4)
    np.testing.assert_allclose(trained.predict(inputs_of_4, verbose=0), model.predict(inputs_of_4, verbose=0), atol=0.1)
    assert tfq.audit(tfq.convert(trained, inputs_of_4)).scheme == "full_int8"
