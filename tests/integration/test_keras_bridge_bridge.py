# SPDX-License-Identifier: Apache-2.0
"""The bridge: every Keras 3 model with an equivalent in tf_keras computes the same there, checked by plain calls."""

import numpy as np
import pytest
from messages import refused, warned
from wrong_twins import copy_wrongly

from tfq.errors import InputError, TfqError
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, load_model, to_tf_keras


def chain(*layers, shape, dtype="float32", name=None):
    keras = import_keras()
    tensor = inputs = keras.Input(shape, dtype=dtype)
    for layer in layers:
        tensor = layer(tensor)
    return keras.Model(inputs, tensor, name=name)


def stirred(model, seed=0):
    """Change every float weight of the model, so that a misplaced one is detected."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "float" in variable.dtype:
            moved = np.asarray(variable.numpy(), np.float32) + 0.2 * np.abs(rng.normal(size=variable.shape))
            variable.assign(moved)
    return model


def fed(model, kind="normal", n=3):
    rng = np.random.default_rng(7)
    arrays = []
    for tensor in model.inputs:
        shape = (n, *tensor.shape[1:])
        integer = "int" in tensor.dtype
        arrays.append(rng.integers(0, 10, shape).astype(tensor.dtype) if integer else rng.normal(size=shape))
    return [array if array.dtype.kind in "iu" else array.astype("float32") for array in arrays]


def flat_outputs(model, arrays, tree):
    provided = model.input if isinstance(model.input, (dict, list)) else [model.input]
    packed = tree.pack_sequence_as(provided, arrays)
    outputs = model(packed if isinstance(model.input, (dict, list)) else packed[0], training=False)
    return [np.asarray(output) for output in tree.flatten(outputs)]


def assert_equal_function(model, result, tolerance=1e-5):
    import tensorflow as tf

    arrays = fed(model)
    theirs = flat_outputs(model, arrays, import_keras().tree)
    ours = flat_outputs(result.model, arrays, tf.nest)
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(b, a, atol=tolerance * max(1.0, np.abs(a).max()), rtol=0)


def bridged(model):
    result = to_tf_keras(stirred(model))
    tf_keras = import_tf_keras()
    assert isinstance(result.model, tf_keras.Model)
    assert not any(isinstance(layer, tf_keras.Model) for layer in result.model.layers)
    assert result.max_difference <= 1e-4
    assert_equal_function(model, result)
    assert set(result.origins) == {layer.name for layer in result.model.layers}
    return result


def test_convolutions_with_every_kind_of_activation():
    layers = import_keras().layers
    result = bridged(
        chain(
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6", kernel_regularizer="l2", name="first"),
            layers.DepthwiseConv2D(3, activation="hard_silu"),
            layers.SeparableConv2D(8, 3, activation="leaky_relu"),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="silu"),
            layers.Conv2D(8, 3, groups=4, activation="hard_sigmoid"),
            layers.GroupNormalization(4),
            layers.PReLU(shared_axes=[1, 2]),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Flatten(),
            layers.Dense(4, "softmax"),
            shape=(24, 24, 4),
        )
    )
    assert result.layer_map["first"] == ("first", "first_activation")
    assert result.origins["first_activation"] == "first"
    assert result.model.get_layer("first_activation").max_value == 6.0
    assert result.model.get_layer("first").kernel_regularizer.l2 == pytest.approx(0.01)


def test_one_dimensional_and_volume_layers():
    layers = import_keras().layers
    bridged(
        chain(
            layers.Conv1D(8, 3, padding="causal", activation="gelu"),
            layers.SeparableConv1D(8, 3),
            layers.DepthwiseConv1D(3),
            layers.Conv1DTranspose(4, 3, strides=2),
            layers.LayerNormalization(),
            layers.RMSNormalization(),
            layers.ZeroPadding1D(1),
            layers.MaxPooling1D(2),
            layers.Reshape((5, -1, 4)),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Reshape((10, 2, -1, 4)),
            layers.Conv3D(2, 2),
            layers.GlobalAveragePooling3D(),
            shape=(13, 4),
        )
    )


@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_adaptive_pooling_whose_windows_are_of_one_size(kind):
    layers = import_keras().layers
    pools = [getattr(layers, f"Adaptive{kind}Pooling{rank}D") for rank in (1, 2, 3)]
    bridged(
        chain(
            pools[2]((6, 4, 2)), layers.Reshape((6, 8, 3)), pools[1]((3, 2)), layers.Reshape((9, 2)), pools[0](3),
            shape=(6, 8, 10, 3),
        )
    )  # fmt: skip


def test_all_named_activations():
    keras = import_keras()
    names = (
        "elu selu softplus softsign exponential gelu mish silu celu relu6 leaky_relu hard_sigmoid hard_silu hard_tanh"
    )
    names += " log_sigmoid log_softmax squareplus tanh_shrink soft_shrink hard_shrink sparse_plus sparse_sigmoid glu"
    inputs = keras.Input((12,))
    bridged(keras.Model(inputs, [keras.layers.Activation(name)(inputs) for name in names.split()]))


def test_keras_3s_hard_sigmoid_is_not_tf_keras_own():
    x = np.linspace(-4, 4, 200, dtype="float32").reshape(10, 20)
    keras, tf_keras = import_keras(), import_tf_keras()
    expected = np.clip(x + 3, 0, 6) / 6
    result = to_tf_keras(chain(keras.layers.Activation("hard_sigmoid"), shape=(20,)))
    np.testing.assert_allclose(result.model(x), expected, atol=1e-6)
    assert type(result.model.layers[-1]).__name__ == "Activation"
    assert np.abs(np.asarray(tf_keras.layers.Activation("hard_sigmoid")(x)) - expected).max() > 0.08


def test_recurrent_layers_with_masks_states_and_wrappers():
    keras = import_keras()
    layers = keras.layers
    words = keras.Input((9,), dtype="int32")
    x = layers.Embedding(10, 6, mask_zero=True)(words)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    x, state = layers.GRU(4, return_sequences=True, return_state=True)(x)
    y = layers.SimpleRNN(4, return_sequences=True)(x, initial_state=state)
    x = layers.TimeDistributed(layers.Dense(3, activation="hard_silu"))(x)
    x = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(4)]))(x)
    bridged(keras.Model(words, [layers.Concatenate()([x, state]), y]))


def test_a_mask_provided_by_the_user_is_an_ordinary_input():
    keras = import_keras()
    x, mask = keras.Input((5, 4), name="x"), keras.Input((5,), dtype="int32", name="mask")
    asked = keras.ops.greater(mask, 4)
    model = stirred(keras.Model([x, mask], keras.layers.LSTM(3)(x, mask=asked)))
    assert_equal_function(model, to_tf_keras(model))


def test_attention():
    keras = import_keras()
    layers = keras.layers
    words = keras.Input((7,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True)(words)
    y = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.AdditiveAttention()([layers.Attention(use_scale=True)([x, y]), y])
    bridged(keras.Model(words, layers.GlobalAveragePooling1D()(x)))


def test_nested_models_are_inlined_with_unique_names_and_frozen_flags():
    keras = import_keras()
    layers = keras.layers
    normal = layers.BatchNormalization(name="bn")
    inner = chain(
        layers.Conv2D(4, 3, name="conv"), normal, layers.Dropout(0.1, name="drop"), shape=(8, 8, 4), name="in"
    )
    middle = keras.Sequential([keras.Input((8, 8, 4)), inner, layers.Conv2D(4, 3, name="conv")], name="middle")
    inputs = keras.Input((8, 8, 4))
    x = layers.BatchNormalization(name="outer_bn")(middle(inputs, training=False))
    result = bridged(keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(x)))
    assert result.layer_map["conv"] == ("conv",)
    assert result.layer_map["middle/conv"] == ("middle_conv",)
    assert result.layer_map["middle/in/conv"] == ("middle_in_conv",)
    assert result.layer_map["middle/in/bn"] == ("bn",)
    assert result.layer_map["middle/in/drop"] == ("drop",)
    assert not result.model.get_layer("bn").trainable and result.model.get_layer("outer_bn").trainable
    assert any("middle/in/bn" in note and "training=False" in note for note in result.notes)


def test_siamese_towers_stay_one_set_of_weights_and_dicts_stay_dicts():
    keras = import_keras()
    layers = keras.layers
    tower = keras.Sequential([layers.Dense(4, name="a"), layers.BatchNormalization(name="b")], name="tower")
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    outputs = {"gap": layers.Subtract(name="gap")([tower(left), tower(right)]), "own": tower(left)}
    result = bridged(keras.Model({"left": left, "right": right}, outputs))
    assert set(result.model.output) == {"gap", "own"}
    assert len(result.model.get_layer("a").inbound_nodes) == 3
    assert len(result.model.trainable_weights) == 4


def test_operations_in_a_nested_model_called_twice():
    keras = import_keras()
    tensor = keras.Input((4,))
    inner = keras.Model(tensor, keras.ops.relu(keras.layers.Dense(4, name="d")(tensor)) * 2.0, name="in")
    outer = keras.Input((4,))
    result = bridged(keras.Model(outer, inner(inner(outer)) + outer / 3.0))
    twice = [names for path, names in result.layer_map.items() if path.startswith("in/") and path != "in/d"]
    assert [len(names) for names in twice] == [2, 2]


def test_augmentation_goes_with_a_note_and_statistics_become_constants():
    keras = import_keras()
    layers = keras.layers
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(np.random.default_rng(0).normal(3, 2, (50, 8, 8, 3)))
    result = bridged(
        chain(layers.RandomFlip(name="flip"), adapted, layers.Resizing(6, 6), layers.Conv2D(2, 3), shape=(8, 8, 3))
    )
    assert result.layer_map["flip"] == ()
    assert any("flip" in note and "augmentation" in note for note in result.notes)
    assert not result.model.get_layer("adapted").weights


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_narrow_floats_become_float32_and_the_users_model_keeps_its_policy(policy):
    keras = import_keras()
    layer = keras.layers.Conv2D(4, 3, dtype=policy)
    model = chain(layer, keras.layers.BatchNormalization(dtype=policy), keras.layers.Flatten(), shape=(6, 6, 2))
    result = to_tf_keras(stirred(model))
    assert {layer.compute_dtype for layer in result.model.layers} == {"float32"}
    assert layer.dtype_policy.name == policy
    assert any("float32" in note for note in result.notes)


def test_a_model_inside_time_distributed():
    keras = import_keras()
    layers = keras.layers
    inner = chain(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3), shape=(6, 6, 2))
    model = stirred(chain(layers.TimeDistributed(inner), layers.LSTM(3), shape=(4, 6, 6, 2)))
    assert_equal_function(model, to_tf_keras(model))


def test_names_that_tensorflow_does_not_take():
    keras = import_keras()
    inputs = keras.Input((4,), name="my input")
    hidden = keras.layers.Dense(3, name="_a (b)")(inputs)
    result = bridged(keras.Model(inputs, keras.layers.Dense(2, name="out put")(hidden)))
    assert result.layer_map == {"my input": ("my_input",), "_a (b)": ("layer_a__b_",), "out put": ("out_put",)}


def test_a_flat_tf_keras_model_comes_back_as_it_is():
    tf_keras = import_tf_keras()
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="d")])
    result = to_tf_keras(model)
    assert result.model is model and result.layer_map == {"d": ("d",)} and result.notes == ()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_nested_tf_keras_model_is_made_flat_and_float32(policy):
    tf_keras = import_tf_keras()
    layers = tf_keras.layers
    inner = tf_keras.Sequential([tf_keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="c", dtype=policy)], name="inner")
    inner.add(layers.BatchNormalization(name="b"))
    inner.add(layers.Dropout(0.5, name="drop"))
    inputs = tf_keras.Input((8, 8, 3))
    x = inner(layers.RandomFlip(name="flip")(inputs), training=False)
    model = tf_keras.Model(inputs, layers.Conv2D(2, 3, name="c")(x) * 2.0)
    model.set_weights([array + 0.3 for array in model.get_weights()])
    result = to_tf_keras(model)
    assert not any(isinstance(layer, tf_keras.Model) for layer in result.model.layers)
    assert result.layer_map["inner/c"] == ("inner_c",)
    assert result.layer_map["inner/drop"] == () and not result.model.get_layer("b").trainable
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    assert result.model.get_layer("inner_c").compute_dtype == "float32"
    assert model.get_layer("inner").get_layer("c").dtype_policy.name == policy
    expected = np.asarray(model(x, training=False))
    tolerance = 1e-6 if policy == "float32" else 1e-2
    np.testing.assert_allclose(result.model(x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_the_result_can_be_cloned_and_reloaded(tmp_path):
    keras, tf_keras = import_keras(), import_tf_keras()
    model = chain(keras.layers.Conv2D(4, 3, activation="hard_silu"), keras.layers.RMSNormalization(), shape=(6, 6, 3))
    ours = to_tf_keras(stirred(model)).model
    clone = tf_keras.models.clone_model(ours)
    clone.set_weights(ours.get_weights())
    with warned("HDF5", UserWarning):
        ours.save(tmp_path / "m.h5")
    again = load_model(tmp_path / "m.h5")
    x = fed(model)[0]
    np.testing.assert_array_equal(clone(x), ours(x))
    np.testing.assert_array_equal(again(x), ours(x))


def test_activity_is_regularized_as_before():
    layers = import_keras().layers
    regularized = layers.Dense(8, activity_regularizer="l1"), layers.ActivityRegularization(l1=0.2, l2=0.1)
    model = chain(*regularized, layers.ReLU(activity_regularizer="l2"), shape=(10,))
    ours, x = to_tf_keras(model).model, np.ones((4, 10), "float32")
    model(x), ours(x)
    np.testing.assert_allclose([float(loss) for loss in ours.losses], [float(loss) for loss in model.losses], rtol=1e-6)
    assert len(ours.losses) == 3


def test_the_batch_size_of_building_a_sequential_is_not_kept():
    keras = import_keras()
    model = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)])
    model(np.zeros((3, 5), "float32"))
    result = to_tf_keras(model)
    assert result.model.inputs[0].shape[0] is None
    assert "batch" in result.notes[0]
    remembering = keras.Sequential([keras.layers.LSTM(4, stateful=True)])
    remembering(np.zeros((3, 5, 2), "float32"))
    assert to_tf_keras(remembering).model.inputs[0].shape[0] == 3


def test_the_result_is_fitted_by_batches_that_tell_no_shape():
    keras, tf_keras = import_keras(), import_tf_keras()
    model = chain(keras.layers.Conv2D(4, 3), keras.layers.RMSNormalization(axis=(1, -1)), shape=(6, 6, 3))
    ours = to_tf_keras(stirred(model)).model

    class Batches(tf_keras.utils.Sequence):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            x = fed(model)[0]
            return x, np.asarray(ours(x))

    ours.compile("sgd", "mse")
    ours.fit(Batches(), verbose=0)


def test_given_data_is_compared_too_and_must_fit():
    keras = import_keras()
    model = chain(keras.layers.Dense(2), shape=(4,))
    assert to_tf_keras(model, data={"x": np.ones((5, 4), "float32")}).max_difference <= 1e-6
    with refused(InputError, field="data", expected=1, got=2):
        to_tf_keras(model, data=[np.ones((5, 4)), np.ones((5, 4))])


def test_the_record_is_plain_data():
    import json

    keras = import_keras()
    record = to_tf_keras(chain(keras.layers.Dense(2, name="d"), shape=(4,), name="m")).to_dict()
    assert json.loads(json.dumps(record))["layer_map"]["d"] == ["d"]
    assert set(record) == {"model", "layer_map", "notes", "max_difference"}


def steep_model(steepness):
    """Return a model that magnifies the usual float32 rounding differences of both Kerases after its normalization."""
    keras = import_keras()
    with deterministic(0):
        image = keras.Input((6, 6, 3))
        x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="conv")(image))
        x = keras.ops.sin(steepness * x)
        model = keras.Model(image, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x)))
    return stirred(model)


def test_data_that_magnifies_rounding_errors_is_excluded_and_reported():
    result = to_tf_keras(steep_model(10.0))
    assert result.max_difference < 1e-4
    [note] = result.notes
    assert "noise" in note


def test_a_mistake_is_seen_on_the_data_that_is_left(monkeypatch):
    copy_wrongly(monkeypatch, "head")
    with refused(TfqError, field="model", word="'head'"):
        to_tf_keras(steep_model(10.0))


def test_a_model_that_is_steep_everywhere_wants_data():
    with refused(TfqError, field="model", word="noise"):
        to_tf_keras(steep_model(1e5))
