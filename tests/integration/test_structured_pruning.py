# SPDX-License-Identifier: Apache-2.0
"""Filter pruning: a smaller model that computes what the input model does without the removed filters, or no model."""

import json

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.compression import qat_model
from tfq.compression.structured_pruning import rebuild, rules
from tfq.compression.structured_pruning.prune import count_macs, prune_structured
from tfq.compression.training import deterministic
from tfq.config import DistillationConfig, QATConfig, StructuredPruningConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_keras, import_tf_keras

RNG = np.random.default_rng(0)


def config(**fields):
    return StructuredPruningConfig(**{"channel_multiple": 2, **fields})


def built(build, *shapes, name="small"):
    """Return a model of build(layers, *inputs) -> output whose weights and statistics are all different."""
    keras = import_tf_keras()
    with deterministic(0):
        inputs = [keras.Input(shape, name=f"input{at}") for at, shape in enumerate(shapes)]
        model = keras.Model(inputs, build(keras.layers, *inputs), name=name)
        random = np.random.default_rng(1)
        for layer in model.layers:
            layer.set_weights([random.uniform(0.1, 1, weight.shape) for weight in layer.get_weights()])
    return model


def by_hand(model, kept, zeroed):
    """Return `model` with the last axis of each layer's weights zero except at kept[layer].

    zeroed: the weights to change, if not all. An independent oracle: the test lists positions and axes.
    """
    copy = import_tf_keras().models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, places in kept.items():
        layer = copy.get_layer(name)
        weights = layer.get_weights()
        for at in zeroed.get(name, range(len(weights))):
            gone = np.setdiff1d(np.arange(weights[at].shape[-1]), places)
            weights[at][..., gone] = 0
        layer.set_weights(weights)
    return copy


def places_left(small, original, name, weight=-1):
    """Return the positions of a layer's last axis that stayed, identified by values that are all different."""
    after, before = small.get_layer(name).get_weights()[weight], original.get_layer(name).get_weights()[weight]
    return [int(np.flatnonzero(before == value)[0]) for value in after]


def assert_same(one, other, *inputs):
    np.testing.assert_allclose(one.predict(inputs, verbose=0), other.predict(inputs, verbose=0), rtol=1e-4, atol=1e-4)


def residual(layers, x):
    x = layers.BatchNormalization(name="bn0")(layers.Conv2D(8, 3, padding="same", name="conv0")(x))
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(12, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.BatchNormalization(name="bn1")(layers.Conv2D(8, 1, use_bias=False, name="conv1")(y))
    x = layers.MaxPooling2D(name="pool")(layers.Add(name="sum")([x, y]))
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="mean")(x))


def test_a_target_says_what_share_of_a_layers_filters_stays():
    model = built(residual, (8, 8, 3))
    result = prune_structured(model, config=config(target_cost=0.99, targets=("inner=0.5", "conv1=1")))
    assert result.removed == {"inner": (6, 12)}
    assert "cost" in result.skipped["conv0"]
    assert "target" in result.skipped["conv1"]
    with refused(InputError, field="compression.structured_pruning.targets", expected=(0, 1), got="inner=2"):
        prune_structured(model, config=config(targets=("inner=2",)))


def bytes_in_memory(content):
    """Return the peak bytes of activations of a flatbuffer, from its own ops and tensors."""
    graph = tfq.tflite.read(content).main_subgraph
    needed = []
    for at in range(len(graph.ops)):
        earlier = set(graph.inputs) | {index for op in graph.ops[: at + 1] for index in op.outputs}
        later = set(graph.outputs) | {index for op in graph.ops[at:] for index in op.inputs}
        alive = (earlier & later) | set(graph.ops[at].outputs)
        alive -= {index for index in alive if index < 0 or graph.tensors[index].is_constant}
        needed.append(sum(int(np.prod(graph.tensors[index].shape)) for index in alive))
    return max(needed)


def test_estimated_memory_is_that_of_the_converted_file():
    model = built(residual, (8, 8, 3))
    samples = RNG.normal(size=(20, 8, 8, 3)).astype(np.float32)
    result = prune_structured(model, config=config(cost="arena", target_cost=0.75))
    assert result.cost_before == bytes_in_memory(tfq.convert(model, samples))
    assert result.cost_after == bytes_in_memory(tfq.convert(result.model, samples))
    assert result.cost_after <= 0.75 * result.cost_before
    assert "estimated bytes" in result.to_text()


def test_estimated_instructions_limit_the_search_and_are_named_as_estimates():
    result = prune_structured(built(residual, (8, 8, 3)), config=config(cost="instructions_a53", target_cost=0.9))
    assert result.cost_after <= 0.9 * result.cost_before
    assert result.macs_after < result.macs_before
    assert "estimated Cortex-A53 instructions" in result.to_text()
    assert result.to_dict()["cost_basis"]


def test_a_residual_sum_loses_the_same_channels_on_all_its_branches():
    model = built(residual, (8, 8, 3))
    before = [weight.copy() for weight in model.get_weights()]
    result = prune_structured(model, config=config(target_cost=0.3))
    small = result.model
    kept = places_left(small, model, "conv0")
    assert places_left(small, model, "bn1") == kept == places_left(small, model, "bn0")
    inner = places_left(small, model, "inner")
    assert len(kept) < 8 and len(inner) < 12
    assert result.removed == {"conv0": (len(kept), 8), "inner": (len(inner), 12), "conv1": (len(kept), 8)}
    assert result.skipped == {"head": "its channels are an output of the model"}
    np.testing.assert_array_equal(
        small.get_layer("inner").get_weights()[0], model.get_layer("inner").get_weights()[0][:, :, kept][..., inner]
    )
    # gamma, beta and the mean of a normalization; the variance stays.
    oracle = by_hand(
        model,
        {"conv0": kept, "bn0": kept, "inner": inner, "conv1": kept, "bn1": kept},
        {"bn0": (0, 1, 2), "bn1": (0, 1, 2)},
    )
    assert_same(small, oracle, RNG.normal(size=(4, 8, 8, 3)).astype("float32"))
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert small.optimizer is None


def test_the_filters_that_stay_have_the_largest_norms():
    def build(layers, x):
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 1, name="conv")(x))
        return layers.Conv2D(2, 1, name="head")(x)

    model = built(build, (4, 4, 3))
    kernel = model.get_layer("conv").get_weights()[0]
    for norm, sums in (("l1", np.abs(kernel).sum((0, 1, 2))), ("l2", np.sqrt((kernel**2).sum((0, 1, 2))))):
        small = prune_structured(model, config=config(norm=norm)).model
        largest = np.argsort(sums)[-len(places_left(small, model, "conv")) :]
        assert places_left(small, model, "conv") == sorted(largest)


def test_channels_are_found_after_a_concatenation_and_a_flatten():
    def build(layers, x):
        a = layers.Conv2D(6, 1, name="a")(x)
        b = layers.ZeroPadding2D(1, name="pad")(layers.Conv2D(8, 3, name="b")(x))
        x = layers.BatchNormalization(name="bn")(layers.Concatenate(name="both")([a, b, a]))
        x = layers.UpSampling2D(2, name="up")(layers.AveragePooling2D(2, name="pool")(x))
        return layers.Dense(3, name="head")(layers.Flatten(name="flat")(layers.Cropping2D(1, name="crop")(x)))

    model = built(build, (6, 6, 3))
    small = prune_structured(model, config=config()).model
    a, b = places_left(small, model, "a"), places_left(small, model, "b")
    assert len(a) < 6 or len(b) < 8
    both = [*a, *(6 + place for place in b), *(14 + place for place in a)]
    assert places_left(small, model, "bn") == both
    expected = model.get_layer("head").get_weights()[0].reshape(16, 20, 3)[:, both].reshape(-1, 3)
    np.testing.assert_array_equal(small.get_layer("head").get_weights()[0], expected)
    oracle = by_hand(model, {"a": a, "b": b, "bn": both}, {"bn": (0, 1, 2)})
    assert_same(small, oracle, RNG.normal(size=(3, 6, 6, 3)).astype("float32"))


def squeeze_excite(layers, x):
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.BatchNormalization(name="bn", scale=False)(x))
    gate = layers.Reshape((1, 1, 16), name="reshape")(layers.GlobalAveragePooling2D(name="squeeze")(x))
    gate = layers.Conv2D(6, 1, activation="swish", name="reduce")(gate)
    gate = layers.Conv2D(16, 1, activation="sigmoid", name="expand")(gate)
    x = layers.Multiply(name="scale")([x, gate]) * 2.0 + x
    return layers.Dense(3, name="head")(layers.GlobalMaxPooling2D(name="mean")(layers.Conv2D(4, 1, name="project")(x)))


def test_a_depthwise_convolution_and_a_gate_follow_their_channels():
    model = built(squeeze_excite, (12, 12, 3))
    small = prune_structured(model, config=config(target_cost=0.4)).model
    stem, reduce = places_left(small, model, "stem"), places_left(small, model, "reduce")
    doubled = [2 * place + more for place in stem for more in (0, 1)]
    assert 2 <= len(stem) < 8
    assert places_left(small, model, "depthwise") == doubled == places_left(small, model, "expand")
    assert small.get_layer("reshape").target_shape == (1, 1, len(doubled))
    assert small.get_layer("prelu").get_weights()[0].shape == (1, 1, len(doubled))
    bn = {"stem": stem, "bn": doubled, "reduce": reduce, "expand": doubled}
    oracle = by_hand(model, bn, {"bn": (0, 1)})
    depthwise = oracle.get_layer("depthwise")
    kernel, bias = depthwise.get_weights()
    bias[np.setdiff1d(np.arange(16), doubled)] = 0
    depthwise.set_weights([kernel, bias])
    project = places_left(small, model, "project")
    oracle = by_hand(oracle, {"project": project}, {})
    assert_same(small, oracle, RNG.normal(size=(3, 12, 12, 3)).astype("float32"))


def test_every_other_layer_with_filters_loses_them_on_the_right_axes():
    def build(layers, x):
        x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up")(x)
        x = layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="tanh", name="separable")(x)
        x = layers.Rescaling(list(range(1, 9)), offset=0.5, name="rescaling")(x)
        x = layers.Reshape((100, 8), name="rows")(x)
        x = layers.Dense(8, activation="sigmoid", name="dense")(layers.Conv1D(8, 3, name="conv1d")(x))
        x = layers.Permute((1, 2), name="permute")(layers.Dropout(0.5, name="dropout")(x))
        return layers.Conv1D(2, 3, padding="same", name="head")(x)

    model = built(build, (6, 6, 4))
    result = prune_structured(model, config=config(target_cost=0.3))
    assert set(result.removed) == {"up", "separable", "conv1d", "dense"}
    places = {name: places_left(result.model, model, name) for name in result.removed}
    kernel = model.get_layer("up").get_weights()[0]
    np.testing.assert_array_equal(result.model.get_layer("up").get_weights()[0], kernel[:, :, places["up"]])
    depthwise, pointwise = model.get_layer("separable").get_weights()[:2]
    between = [2 * place + more for place in places["up"] for more in (0, 1)]
    got = result.model.get_layer("separable").get_weights()
    np.testing.assert_array_equal(got[0], depthwise[:, :, places["up"]])
    np.testing.assert_array_equal(got[1], pointwise[:, :, between][..., places["separable"]])
    assert result.model.get_layer("rescaling").scale == [1 + place for place in places["separable"]]


def test_a_grouped_convolution_loses_whole_groups():
    def build(layers, x):
        x = layers.Conv2D(16, 1, name="before")(x)
        x = layers.ReLU(name="relu")(layers.Conv2D(32, 3, groups=4, padding="same", name="grouped")(x))
        return layers.Conv2D(2, 1, name="head")(x)

    model = built(build, (6, 6, 3))
    small = prune_structured(model, config=config(channel_multiple=4)).model
    kept = places_left(small, model, "grouped")
    groups = sorted({place // 8 for place in kept})
    assert small.get_layer("grouped").groups == len(groups) < 4
    assert kept == [8 * group + place for group in groups for place in range(8)]
    assert places_left(small, model, "before") == [4 * group + place for group in groups for place in range(4)]


def test_two_inputs_and_two_outputs_keep_their_channels():
    def build(layers, one, two):
        x = layers.Conv2D(8, 1, name="one")(one)
        y = layers.Conv2D(8, 1, name="two")(two)
        both = layers.Maximum(name="maximum")([x, y])
        return [layers.Conv2D(4, 1, name="head")(both), layers.ReLU(name="also")(layers.Conv2D(4, 1, name="tail")(y))]

    model = built(build, (4, 4, 3), (4, 4, 5))
    small = prune_structured(model, config=config()).model
    assert places_left(small, model, "one") == places_left(small, model, "two")
    assert [tuple(output.shape) for output in small.outputs] == [(None, 4, 4, 4)] * 2


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda layers, x: layers.LayerNormalization(name="cut")(x), "LayerNormalization"),
        (lambda layers, x: layers.Softmax(name="cut")(x), "from other"),
        (lambda layers, x: layers.Permute((1, 3, 2), name="cut")(x), "one to one|from other|fails"),
        (lambda layers, x: layers.Reshape((6, 6, 2, 4), name="cut")(x)[..., 0], "several axes"),
        (lambda layers, x: layers.Lambda(lambda x: x[..., ::-1], name="cut")(x), "from other"),
        (lambda layers, x: x[..., :4], "one to one"),
        (
            lambda layers, x: import_tf_keras().Sequential([layers.Conv2D(4, 1, name="free")], name="cut")(x),
            "no rule",
        ),
        (lambda layers, x: layers.BatchNormalization(axis=1, name="cut")(x), "axis"),
    ],
)
def test_what_cannot_be_followed_keeps_its_channels_and_says_why(cut, reason):
    def build(layers, x):
        x = layers.ReLU(name="relu")(layers.Conv2D(8, 1, name="held")(layers.Conv2D(16, 3, name="free")(x)))
        return layers.Dense(3, name="head")(layers.Flatten(name="flat")(cut(layers, x)))

    model = built(build, (8, 8, 3))
    result = prune_structured(model, config=config(target_cost=0.6))
    assert set(result.removed) == {"free"}
    (message,) = [why for why in [result.skipped["held"]] if "layer '" in why]
    assert any(part in message for part in reason.split("|"))


def test_a_layer_that_is_called_twice_keeps_its_channels():
    def build(layers, x):
        twice = layers.Conv2D(8, 1, name="twice")
        x = layers.Conv2D(8, 1, name="before")(x)
        x = layers.Conv2D(16, 1, name="after")(twice(twice(x)))
        return layers.Conv2D(2, 1, name="head")(x)

    result = prune_structured(built(build, (4, 4, 3)), config=config(target_cost=0.7))
    assert set(result.removed) == {"after"}
    assert result.skipped["before"] == result.skipped["twice"] == "layer 'twice' is called 2 times"
    # before 3*8, twice 2 * 8*8, after 8*16, head 16*2, on 16 places.
    assert result.macs_before == 16 * (24 + 128 + 128 + 32)


def test_multiply_adds_are_those_of_the_layers_formulas():
    def build(layers, x):
        x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x)  # 4x4 places
        x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
        x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
        x = layers.Conv2D(6, 3, groups=3, padding="same", name="grouped")(x)
        x = layers.Conv2DTranspose(5, 2, strides=2, name="transpose")(x)  # 8x8 places
        return layers.Dense(7, name="dense")(layers.Flatten(name="flat")(layers.BatchNormalization(name="bn")(x)))

    assert count_macs(built(build, (8, 8, 3))) == {
        "conv": 16 * 9 * 3 * 4,
        "depthwise": 16 * 9 * 4,
        "separable": 16 * 9 * 4 + 16 * 4 * 6,
        "grouped": 16 * 9 * 2 * 6,
        "transpose": 16 * 4 * 6 * 5,
        "dense": 64 * 5 * 7,
    }


def fit(model, callbacks):
    x = RNG.normal(size=(32, *model.input_shape[1:])).astype("float32")
    loss = import_tf_keras().losses.SparseCategoricalCrossentropy(from_logits=True)
    # Eager, because TensorFlow traces a QAT step for longer than four of them take.
    model.compile("adam", loss, run_eagerly=True)
    model.fit(x, np.arange(32) % 3, batch_size=8, epochs=1, verbose=0, callbacks=callbacks)


def test_the_small_model_trains_and_converts_with_half_the_macs():
    model = built(residual, (16, 16, 3))
    model.get_layer("bn1").trainable = False
    result = prune_structured(model, fit, config(channel_multiple=4))
    small = result.model
    assert result.macs_after <= 0.5 * result.macs_before
    assert sum(count_macs(small).values()) == result.macs_after
    assert small.optimizer is None and not small.get_layer("bn1").trainable and small.get_layer("bn0").trainable
    assert result.parameters_after == small.count_params() < result.parameters_before == model.count_params()
    assert result.max_difference < 1e-5
    message = json.loads(json.dumps(result.to_dict()))
    assert message["removed"]["inner"] == {"kept": small.get_layer("inner").filters, "of": 12}
    assert "inner" in result.to_text() and f"{result.macs_before:,}" in result.to_text()
    trained = qat_model(small, fit, QATConfig(num_calibration_samples=0))
    assert tfq.audit(tfq.convert(trained), tfq.AuditConfig(require="full_int8")).ok


def test_an_activation_that_maps_zero_to_a_constant_changes_nothing():
    def build(layers, x):
        x = layers.Conv2D(8, 3, padding="same", activation="sigmoid", name="sigmoid")(x)
        x = layers.Activation("softplus", name="softplus")(x) + 1.0
        return layers.Conv2D(2, 3, padding="same", name="head")(x)

    result = prune_structured(built(build, (6, 6, 3)), config=config())
    assert result.removed == {"sigmoid": (4, 8)} and result.max_difference < 1e-5


def test_a_sequential_model_stays_one():
    keras = import_tf_keras()
    layers = keras.layers
    stack = [layers.Dense(16, "relu", name="one", input_shape=(8,)), layers.Dense(16, name="two"), layers.Dense(3)]
    result = prune_structured(keras.Sequential(stack), config=config())
    assert isinstance(result.model, keras.Sequential) and result.macs_after <= result.macs_before / 2


@pytest.mark.parametrize("fault", ["wrong places", "wrong weights"])
def test_a_small_model_that_computes_something_else_is_refused(fault, monkeypatch):
    model = built(residual, (8, 8, 3))
    if fault == "wrong places":
        cut = rebuild.cut_weights

        def shifted(layer, kept):
            return cut(layer, {**kept, "in": (kept["in"] + 1) % 8} if layer.name == "inner" else kept)

        monkeypatch.setattr(rebuild, "cut_weights", shifted)
    else:
        rule = rules.RULES["batch_normalization"]
        wrong = rules.Rule(axes=rule.axes, zeroed=("gamma",), output_is_zero=rule.output_is_zero)
        monkeypatch.setitem(rules.RULES, "batch_normalization", wrong)
    with refused(TfqError, field="model") as caught:
        prune_structured(model, config=config(target_cost=0.3))
    assert caught.value.got in ("inner", "conv1", "bn1")


def test_the_small_model_learns_from_the_original_model():
    histories = []
    x = RNG.normal(size=(32, 16, 16, 3)).astype("float32")

    def fit(student, callbacks):
        student.compile("adam", import_tf_keras().losses.SparseCategoricalCrossentropy(from_logits=True))
        histories.append(student.fit(x, np.arange(32) % 3, epochs=4, verbose=0, callbacks=callbacks).history)

    def distances(weight, **teachers):
        expected = DistillationConfig(enabled=True, weight=weight)
        result = prune_structured(model, fit, config(distillation=expected), **teachers)
        assert type(result.model) is type(model)
        return histories[-1]["distillation_loss"]

    model = built(residual, (16, 16, 3))
    first, *_, last = distances(1.0)
    assert last < first
    # Learning only from the labels does not get as close.
    assert last < distances(0.0)[-1]
    other = built(residual, (16, 16, 3))
    other.set_weights([weight / 2 for weight in model.get_weights()])
    assert distances(1.0, teacher=other)[0] != pytest.approx(first, rel=0.01)
    with refused(InputError, field="compression.structured_pruning.distillation.enabled"):
        prune_structured(model, fit, config(), teacher=other)
    with refused(TfqError, field="fit", word="distillation"):
        prune_structured(model, lambda *_: None, config(distillation=DistillationConfig(enabled=True)))


def test_a_fit_that_does_not_train_is_reported():
    with refused(TfqError, field="fit", expected="a fit that trains the model"):
        prune_structured(built(residual, (8, 8, 3)), lambda model, callbacks: None, config())


def test_what_cannot_be_done_is_refused_with_what_to_do():
    model = built(residual, (8, 8, 3))
    with refused(InputError, field="compression.structured_pruning.target_cost", got=1):
        prune_structured(model, config=config(target_cost=1.0))
    with refused(InputError, field="compression.structured_pruning.target_cost", got=0.01, word="head"):
        prune_structured(model, config=config(target_cost=0.01))
    with refused(InputError, field="model", got="small", word="conv0", limit="nothing-to-compress"):
        prune_structured(model, config=config(channel_multiple=16))
    with refused(InputError, field="compression.structured_pruning.layers", got="con0", word="'conv0'"):
        prune_structured(model, config=config(layers=("con0",)))
    with refused(InputError, field="model", word="pruning"):
        keras = import_keras()
        image = keras.Input((4, 4, 3))
        prune_structured(keras.Model(image, keras.layers.Conv2D(8, 1)(image)))
    open_size = built(lambda layers, x: layers.Conv2D(2, 1)(layers.Conv2D(8, 1, name="conv")(x)), (None, None, 3))
    with refused(InputError, field="model", expected="a fixed shape", got="conv", limit="open-sizes-macs"):
        prune_structured(open_size, config=config())
    broken = built(residual, (8, 8, 3))
    broken.get_layer("head").set_weights([np.full((8, 3), np.nan), np.zeros(3)])
    with refused(InputError, field="model", expected="finite weights", got="head"):
        prune_structured(broken, config=config())
