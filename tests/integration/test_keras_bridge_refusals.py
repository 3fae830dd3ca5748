# SPDX-License-Identifier: Apache-2.0
"""Refusals of the bridge with all reasons at once; a wrong twin that its check rejects; the private symbols."""

import numpy as np
import pytest
from messages import refused
from wrong_twins import copy_wrongly

from tfq import registry
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import BridgedLayer, Translation, import_keras, import_tf_keras, to_tf_keras, walk


def test_all_unsupported_layers_are_listed_at_once_by_path():
    keras = import_keras()

    class Mine(keras.layers.Layer):
        def call(self, x):
            return np.sin(x)

        def compute_output_shape(self, shape):
            return shape

    inner = keras.Sequential([keras.Input((8,)), keras.layers.Lambda(np.sin, (8,), name="code")], name="inner")
    inputs = keras.Input((8,))
    x = Mine(name="mine")(inner(inputs))
    x = keras.layers.Dense(8, activation=lambda x: np.sin(x), name="odd")(x)
    model = keras.Model(inputs, keras.layers.Reshape((2, 4), name="fine")(x), name="user_model")
    with pytest.raises(InputError) as raised:
        to_tf_keras(model)
    problems = raised.value.problems
    assert problems.keys() == set(raised.value.got) == {"inner/code", "mine", "odd"}
    words = {"inner/code": "symbolic", "mine": "BridgedLayer(keras_class=Mine", "odd": "symbolic"}
    assert {name: word for name, word in words.items() if word not in problems[name]} == {}
    assert raised.value.classes == {"inner/code": "Lambda", "mine": "Mine", "odd": "Dense"}
    assert "'inner/code' (Lambda)" in str(raised.value)


def test_options_and_states_that_tf_keras_has_no_word_for():
    keras = import_keras()
    inputs = keras.Input((6, 8))
    gated = keras.layers.MultiHeadAttention(2, 4, use_gate=True, name="gated")
    x, _ = gated(inputs, inputs, return_attention_scores=True)
    x = keras.layers.MultiHeadAttention(2, 4, sliding_window=2, name="window")(x, x)
    lora = keras.layers.Dense(4, name="lora")
    x = lora(x)
    lora.enable_lora(2)
    eight = keras.layers.Dense(4, name="eight")
    x = eight(x)
    eight.quantize("int8")
    with pytest.raises(InputError) as raised:
        to_tf_keras(keras.Model(inputs, x))
    words = {"gated": "use_gate", "window": "sliding_window=2", "lora": "LoRA", "eight": "int8"}
    assert raised.value.problems.keys() == words.keys()
    assert {name: word for name, word in words.items() if word not in raised.value.problems[name]} == {}


def test_augmentation_that_changes_the_shape():
    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    with refused(InputError, field="model", got=("crop",), word="shape", limit="untranslatable-layers"):
        to_tf_keras(keras.Model(inputs, keras.layers.RandomCrop(4, 4, name="crop")(inputs)))


def test_a_layer_that_tf_keras_refuses_is_reported_with_its_reason():
    keras = import_keras()
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.EinsumDense("abc,cd->abd", (None, 7), name="three_axes")(inputs)
    with refused(InputError, field="model", got=("three_axes",), word="rank"):
        to_tf_keras(keras.Model(inputs, outputs))


def test_a_model_with_a_fixed_batch_size_is_reported():
    keras = import_keras()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.broadcast_to(inputs, (1, 3)), name="of_one")
    with refused(InputError, field="model", got="of_one", word="broadcast"):
        to_tf_keras(model)


def test_an_operation_that_fails_is_reported_with_its_exception():
    keras = import_keras()
    inputs = keras.Input((4, 4))
    with pytest.raises(InputError) as raised:
        to_tf_keras(keras.Model(inputs, keras.ops.kron(inputs, inputs)))
    assert "in user code" not in str(raised.value) and "Error: " in str(raised.value)


def test_adaptive_pooling_needs_windows_of_one_known_size():
    keras = import_keras()
    inputs, longer, images = keras.Input((9, 8, 3)), keras.Input((None, 3)), keras.Input((2, 8, 8, 3))
    outputs = [
        keras.layers.AdaptiveAveragePooling2D((3, 3), name="uneven")(inputs),
        keras.layers.AdaptiveMaxPooling1D(2, name="unknown")(longer),
        keras.layers.TimeDistributed(keras.layers.AdaptiveMaxPooling2D(2), name="inside")(images),
    ]
    with pytest.raises(InputError) as raised:
        to_tf_keras(keras.Model([inputs, longer, images], outputs))
    assert raised.value.problems.keys() == {"uneven", "unknown", "inside"}
    assert "(3, 3)" in raised.value.problems["uneven"]


@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_subclassed_and_unbuilt_models(kind):
    module = import_keras() if kind == "keras" else import_tf_keras()

    class Own(module.Model):
        def call(self, x):
            return x

    with refused(InputError, field="model", got="own", word="subclassed", limit="no-graph"):
        to_tf_keras(Own(name="own"))
    with refused(InputError, field="model", word="built", limit="no-graph"):
        to_tf_keras(module.Sequential([module.layers.Dense(2)]))
    with refused(InputError, field="model", got="builtins.str"):
        to_tf_keras("no model")


def test_a_functional_model_in_a_subclass_is_not_refused_as_subclassed():
    keras = import_keras()

    class Named(keras.Model):
        pass

    inputs = keras.Input((4,))
    assert to_tf_keras(Named(inputs, keras.layers.Dense(2)(inputs))).max_difference < 1e-6


def test_random_and_batch_dependent_calls_of_tf_keras():
    tf_keras = import_tf_keras()
    inner = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.Dropout(0.5, name="always")(inner(inputs), training=True)
    with refused(InputError, field="model", got=("always",), word="training=True"):
        to_tf_keras(tf_keras.Model(inputs, x))


def test_one_batch_normalization_cannot_be_frozen_and_not():
    keras = import_keras()
    inner = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")], name="inner")
    inputs = keras.Input((4,))
    with refused(InputError, field="model", got=("inner/bn",), word="training=False"):
        to_tf_keras(keras.Model(inputs, inner(inputs, training=False) + inner(inputs)))


def test_a_wrong_weight_is_found_and_the_first_layer_named(monkeypatch):
    keras = import_keras()
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="good")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="after")(keras.layers.Dense(4, name="bad")(x)))
    copy_wrongly(monkeypatch, "bad")
    with refused(TfqError, field="model", word="'bad'"):
        to_tf_keras(model)


def test_a_translator_that_is_not_equivalent_is_detected():
    keras, tf_keras = import_keras(), import_tf_keras()

    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Twice(name="twice")(inputs))

    def translate(layer, context):
        return Translation(layers=(tf_keras.layers.Rescaling(2.1, name=context.name),))

    with registry.temporary():
        registry.register(BridgedLayer(name="Twice", help="a test's", translate=translate, keras_class=Twice))
        with refused(TfqError, field="model", word="'twice'"):
            to_tf_keras(model)
    with refused(InputError, field="keras_class", got=tf_keras.layers.Dense):
        BridgedLayer(name="Twice", help="a test's", translate=translate, keras_class=tf_keras.layers.Dense)


@pytest.mark.parametrize(
    ("layers", "key_word"),
    [
        (lambda keras, name: keras.layers.Dense(4), "name"),
        (lambda keras, name: np.tanh, "ufunc"),
    ],
)
def test_a_wrong_translation_of_the_users_is_refused(layers, key_word):
    keras, tf_keras = import_keras(), import_tf_keras()

    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Mine(name="mine")(inputs))
    with registry.temporary():
        registry.register(
            BridgedLayer(
                name="Mine",
                help="a test's",
                keras_class=Mine,
                translate=lambda layer, context: Translation(layers=(layers(tf_keras, context.name),)),
            )
        )
        with refused(InputError, field="model", got=("mine",), word=key_word):
            to_tf_keras(model)


def test_a_nan_on_one_side_is_a_mismatch():
    from tfq.keras_bridge.verification import difference

    a, b = np.array([1.0, 2.0]), np.array([1.0, np.nan])
    assert difference([[a]], [[b]]) == np.inf


def test_the_walk_finds_the_private_symbols_where_they_were():
    keras, tf_keras = import_keras(), import_tf_keras()
    for module in (keras, tf_keras):
        inputs = {"a": module.Input((4,), name="a"), "b": module.Input((4,), name="b")}
        shared = module.layers.Dense(4, name="shared")
        outputs = {"x": module.layers.Add(name="sum")([shared(inputs["a"]), shared(inputs["b"])])}
        graph = walk.graph_of(module.Model(inputs, outputs))
        assert [call.operation.name for call in graph.calls] == ["shared", "shared", "sum"]
        assert graph.input_structure.keys() == {"a", "b"} and graph.output_structure.keys() == {"x"}
        assert graph.calls[2].outputs[0] is graph.output_structure["x"]
        assert {id(call.args[0]) for call in graph.calls[:2]} == {id(tensor) for tensor in graph.inputs}
        built = module.Sequential([module.Input((4,)), module.layers.Dense(2, name="d")])
        assert [call.operation.name for call in walk.graph_of(built).calls] == ["d"]
    words = keras.Input((5,), dtype="int32")
    masked = keras.layers.LSTM(3)(keras.layers.Embedding(4, 2, mask_zero=True)(words))
    assert "mask" not in walk.graph_of(keras.Model(words, masked)).calls[-1].kwargs


def test_every_translated_class_is_one_of_keras_3s():
    keras = import_keras()
    in_applications = {"LayerScale", "StochasticDepth", "CustomScaleLayer"}
    public = {value.__name__ for value in vars(keras.layers).values() if isinstance(value, type)}
    entries = registry.entries(BridgedLayer).values()
    unknown = {entry.name for entry in entries if entry.translate is not None} - public
    assert unknown == in_applications
