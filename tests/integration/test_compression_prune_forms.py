# SPDX-License-Identifier: Apache-2.0
"""Forms of pruning: per-layer targets, sensitivity, m:n, blocks; for any functional model and in the flatbuffer."""

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq.compression import (
    m_by_n_groups_in_flatbuffer,
    measure_sparsity,
    measure_zero_blocks,
    prune_model,
    pruning_plan,
    sensitivity,
    sparsity_in_flatbuffer,
    zero_blocks_in_flatbuffer,
)
from tfq.compression.pruning import prune as prune_room
from tfq.compression.pruning.mask_shapes import mask_of_blocks
from tfq.compression.training import deterministic
from tfq.config import PruneConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras, import_tfmot

RNG = np.random.default_rng(0)


def examples(model, n=32):
    tensor = model.inputs[0]
    shape = (n, *tensor.shape[1:])
    return RNG.integers(0, 10, shape) if tensor.dtype.is_integer else RNG.normal(size=shape).astype("float32")


def fit(model, callbacks):
    """Train two epochs of four steps that change nothing: the remaining weights stay bit-identical."""
    x = examples(model, 16)
    model.compile(import_tf_keras().optimizers.SGD(0.0), "mse", run_eagerly=True)
    y = np.asarray(model(x))
    model.fit(x, y, epochs=2, batch_size=4, callbacks=callbacks, verbose=0)


def image_model():
    layers = import_tf_keras().layers
    with deterministic(0):
        return import_tf_keras().Sequential(
            [
                layers.Conv2D(8, 3, name="conv", input_shape=(8, 8, 3)),
                layers.Conv2D(6, 1, activation="relu", name="point"),
                layers.Flatten(name="flat"),
                layers.Dense(16, name="hidden"),
                layers.Dense(10, "softmax", name="head"),
            ]
        )


def dense_model(*sizes, inputs=16):
    layers = import_tf_keras().layers
    with deterministic(0):
        return import_tf_keras().Sequential(
            [layers.InputLayer((inputs,)), *(layers.Dense(size, name=f"d{n}") for n, size in enumerate(sizes))]
        )


def test_targets_by_name_pattern_are_reached_layer_by_layer():
    config = PruneConfig(final_sparsity=0.25, targets=("*o*=0.75", "conv=0.5", "hidden=0"))
    model = image_model()
    plan = pruning_plan(model, config)
    assert plan.sparsities == {"conv": 0.5, "point": 0.75, "head": 0.25}
    assert plan.skipped["hidden"] == "its target is 0"
    got = measure_sparsity(prune_model(model, fit, config, plan=plan))
    expected = {"conv": 0.5, "point": 0.75, "hidden": 0.0, "head": 0.25}
    assert got == {name: pytest.approx(sparsity, abs=0.011) for name, sparsity in expected.items()}


def test_two_in_four_zeros_along_input_channels_reach_the_flatbuffer():
    model = image_model()
    config = PruneConfig(sparsity_m_by_n=(2, 4))
    plan = pruning_plan(model, config)
    # 3 input channels: one is removed; 8: two in each four.
    assert plan.sparsities["conv"] == pytest.approx(1 / 3) and plan.sparsities["point"] == 0.5
    pruned = prune_model(model, fit, config)
    assert measure_sparsity(pruned) == {name: pytest.approx(s, abs=0.01) for name, s in plan.sparsities.items()}
    kernel = pruned.get_layer("point").get_weights()[0]  # (1, 1, 8 inputs, 6 outputs)
    assert ((kernel.reshape(2, 4, 6) != 0).sum(axis=1) == 2).all()
    before = np.abs(model.get_layer("point").get_weights()[0]).reshape(2, 4, 6)
    assert (np.sort(before, axis=1)[:, :2] < np.abs(kernel).reshape(2, 4, 6).max(axis=1, keepdims=True)).all()
    model_bytes = tfq.convert(pruned, examples(model), tfq.ConversionConfig())
    assert m_by_n_groups_in_flatbuffer(model_bytes, 2, 4) == dict.fromkeys(("conv", "point", "hidden", "head"), 1.0)
    assert all(sparsity_in_flatbuffer(model_bytes)[name] >= plan.sparsities[name] - 1e-9 for name in plan.pruned)
    # The same number of zeros at random places does not pass.
    random = prune_model(model, fit, PruneConfig(layers=("point", "hidden")))
    assert (
        m_by_n_groups_in_flatbuffer(tfq.convert(random, examples(model), tfq.ConversionConfig()), 2, 4)["hidden"] < 0.9
    )


def test_m_by_n_leaves_out_kernels_with_inputs_on_another_axis():
    keras = import_tf_keras()
    image = keras.Input((6, 6, 8))
    transposed = keras.layers.Conv2DTranspose(4, 3, name="transposed")
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="conv")(transposed(image)))
    plan = pruning_plan(model, PruneConfig(sparsity_m_by_n=(2, 4)))
    assert plan.pruned == ("conv",) and "run along the input channels" in plan.skipped["transposed"]
    # Stock tfmot assumes that the inputs are the axis before the last of (height, width, outputs, inputs).
    tfmot = import_tfmot()
    wrapper = tfmot.sparsity.keras.prune_low_magnitude(
        keras.layers.Conv2DTranspose(4, 3), sparsity_m_by_n=(2, 4), input_shape=(6, 6, 8)
    )
    stock = keras.Sequential([wrapper])
    stock.compile("sgd", "mse", run_eagerly=True)
    stock.fit(
        np.ones((1, 6, 6, 8)), np.ones((1, 8, 8, 4)), verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()]
    )
    by_inputs = stock.layers[0].layer.kernel.numpy().reshape(3, 3, 4, 2, 4) != 0
    assert (by_inputs.sum(axis=-1) > 2).any()


def test_blocks_go_as_one():
    model = dense_model(8, 10)
    config = PruneConfig(block_size=(4, 2), final_sparsity=0.75, layers=("d0",))
    kernel = prune_model(model, fit, config).get_layer("d0").get_weights()[0]
    blocks = (kernel.reshape(4, 4, 4, 2) != 0).transpose(0, 2, 1, 3).reshape(4, 4, 8)
    assert (blocks.all(axis=-1) | ~blocks.any(axis=-1)).all()
    sums = np.abs(model.get_layer("d0").get_weights()[0]).reshape(4, 4, 4, 2).sum(axis=(1, 3))
    np.testing.assert_array_equal(blocks.all(axis=-1), sums >= np.sort(sums.ravel())[12])


def test_a_layer_with_a_slash_is_addressed_by_its_name():
    # As in DenseNet121: "conv1/conv" is one layer.
    keras = import_tf_keras()
    inner = keras.Sequential([keras.layers.Dense(4, name="a/b", input_shape=(4,))], name="inner")
    model = keras.Sequential([keras.layers.Dense(4, name="c/d", input_shape=(4,)), inner])
    assert tuple(measure_sparsity(model)) == pruning_plan(model).pruned == ("c/d", "inner/a/b")


@pytest.mark.parametrize("block", [(4, 2), (0, 1), (1, 0)])
def test_blocks_rows_and_columns_of_convolutions_survive_qat_and_conversion(block):
    layers = import_tf_keras().layers
    with deterministic(0):
        model = import_tf_keras().Sequential(
            [
                layers.Conv2D(8, 3, name="first", input_shape=(8, 8, 4)),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="relu"),
                layers.Conv2D(4, 3, name="second"),
                layers.Flatten(name="flat"),
            ]
        )
    config = PruneConfig(block_size=block, layers=("first", "second"))
    before = {name: model.get_layer(name).kernel.numpy() for name in config.layers}
    pruned = prune_model(model, fit, config)

    def blocks_of(kernel):
        """Return the blocks of a kernel as rows, listed one by one."""
        matrix = kernel.reshape(-1, kernel.shape[-1])
        height, width = block[0] or len(matrix), block[1] or matrix.shape[1]
        starts = [(row, at) for row in range(0, len(matrix), height) for at in range(0, matrix.shape[1], width)]
        return np.array([matrix[row : row + height, at : at + width].ravel() for row, at in starts])

    for name in config.layers:
        blocks = blocks_of(pruned.get_layer(name).kernel.numpy())
        is_zero = ~blocks.any(axis=1)
        assert is_zero.mean() == 0.5 and blocks[~is_zero].all()
        sums = np.abs(blocks_of(before[name])).sum(axis=1)
        assert sums[is_zero].max() <= sums[~is_zero].min()
    assert measure_zero_blocks(pruned, *block) == dict.fromkeys(config.layers, 0.5)

    def learning(model, callbacks):
        x = examples(model, 16)
        model.compile(import_tf_keras().optimizers.SGD(0.01), "mse")
        model.fit(x, np.ones((16, 64)), epochs=1, batch_size=8, callbacks=callbacks, verbose=0)

    trained = tfq.qat(pruned, learning, calibration=examples(model))
    assert measure_zero_blocks(trained, *block) == dict.fromkeys(config.layers, 0.5)
    counted = zero_blocks_in_flatbuffer(tfq.convert(trained), *block)
    assert all(counted[name] >= 0.5 for name in config.layers)
    dense = zero_blocks_in_flatbuffer(tfq.convert(model, examples(model)), *block)
    assert max(dense.values()) < 0.5


def test_layers_that_cannot_have_blocks_report_the_reason():
    plan = pruning_plan(image_model(), PruneConfig(block_size=(2, 2)))
    assert plan.pruned == ("point", "hidden", "head")
    assert "3x3x3x8" in plan.skipped["conv"]  # blocks of two do not divide three inputs
    skipped = pruning_plan(dense_model(8, 10, 16), PruneConfig(block_size=(4, 4))).skipped
    assert "8x10" in skipped["d1"]
    with refused(InputError, field="compression.prune.block_size", got=(16, 8)):
        pruning_plan(dense_model(8), PruneConfig(block_size=(16, 8)))
    keras = import_tf_keras()
    image = keras.Input((6, 6, 8))
    transposed = keras.layers.Conv2DTranspose(4, 3, name="transposed")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="conv")(transposed))
    plan = pruning_plan(model, PruneConfig(block_size=(2, 2)))
    assert plan.pruned == ("conv",) and "other axes" in plan.skipped["transposed"]


def test_stock_tfmot_masks_other_blocks_than_it_measures():
    tfmot, keras = import_tfmot(), import_tf_keras()
    wrapper = tfmot.sparsity.keras.prune_low_magnitude(
        keras.layers.Dense(8, use_bias=False),
        tfmot.sparsity.keras.ConstantSparsity(0.8, 0, frequency=1),
        block_size=(4, 4),
        input_shape=(10,),
    )
    model = keras.Sequential([wrapper])
    kernel = np.full((10, 8), 1.0, "float32")
    kernel[3:7] = 10.0
    wrapper.layer.kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(np.ones((1, 10)), np.ones((1, 8)), verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    # Rows 4 to 7 are a block, and by far the largest, with three rows of 10: one of its halves stays, and row 7 with
    # it. tfmot pools rows 3 to 6 instead, which is why tfq has its own masks.
    pooled_from = -((12 - 10) // 2)
    assert pooled_from == -1
    assert skipped_rows(wrapper.layer.kernel.numpy()) == [0, 1, 2, 3, 8, 9]


def skipped_rows(kernel):
    return [row for row in range(len(kernel)) if not kernel[row].any()]


def test_sensitivity_is_the_change_of_the_outputs_by_one_layer_alone():
    model = dense_model(6, 4)
    x = examples(model)
    table = sensitivity(model, x, (0.5, 0.75))
    assert list(table.errors) == ["d0", "d1"] and table.sizes == {"d0": 96, "d1": 24} and table.examples == 32
    (k0, b0), (k1, b1) = (model.get_layer(name).get_weights() for name in ("d0", "d1"))
    for level, got in zip(table.levels, table.errors["d0"], strict=True):
        small = np.abs(k0) < np.sort(np.abs(k0).ravel())[round(level * k0.size)]
        expected, pruned = ((x @ kernel + b0) @ k1 + b1 for kernel in (k0, np.where(small, 0, k0)))
        assert got == pytest.approx(
            np.mean((pruned - expected) ** 2) / np.mean((expected - expected.mean(0)) ** 2), rel=1e-3
        )


def test_of_probabilities_the_logits_count():
    import tensorflow as tf

    keras = import_tf_keras()
    logits = dense_model(6, 4)
    centered = keras.Model(logits.inputs, logits.output - tf.reduce_mean(logits.output, axis=-1, keepdims=True))
    probabilities = keras.Model(logits.inputs, keras.layers.Softmax()(logits.output))
    x = examples(logits)
    expected = sensitivity(centered, x, (0.5,)).errors
    assert sensitivity(probabilities, x, (0.5,)).errors == {
        name: pytest.approx(errors, rel=1e-3) for name, errors in expected.items()
    }


def test_sensitivity_keeps_the_model_and_needs_different_examples():
    model = dense_model(6, 4)
    before = model.get_weights()
    sensitivity(model, examples(model), (0.5,))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    with refused(InputError, field="calibration", expected="examples that differ"):
        sensitivity(model, np.ones((4, 16), "float32"), (0.5,))
    with refused(InputError, field="calibration", expected="at least 2 examples", got=1):
        sensitivity(model, np.ones((1, 16), "float32"), (0.5,))
    with refused(InputError, field="levels", got=(0.5, 0.25)):
        sensitivity(model, examples(model), (0.5, 0.25))


def test_by_sensitivity_layers_differ_and_together_reach_final_sparsity():
    model = dense_model(24, 12, 4)
    weights = model.get_layer("d1").get_weights()
    # Most of d1 is almost zero, so it can be pruned without harm.
    model.get_layer("d1").set_weights([weights[0] * np.where(RNG.uniform(size=(24, 12)) < 0.9, 1e-4, 1), weights[1]])
    config = PruneConfig(allocation="sensitivity", final_sparsity=0.6)
    with refused(InputError, field="calibration", got=None, word="allocation=sensitivity"):
        prune_model(model, fit, config)
    assert pruning_plan(model, config).sparsities == {}
    calibration = {"x": examples(model)}
    plan = pruning_plan(model, config, calibration)
    assert plan.sparsities["d1"] > 0.85 > plan.sparsities["d0"]
    pruned = prune_model(model, fit, config, calibration)
    kernels = [layer.get_weights()[0] for layer in pruned.layers]
    total = sum(kernel.size for kernel in kernels)
    assert sum(int((kernel == 0).sum()) for kernel in kernels) / total == pytest.approx(0.6, abs=2 / total)
    got = measure_sparsity(pruned)
    assert got == {name: pytest.approx(sparsity, abs=0.011) for name, sparsity in plan.sparsities.items()}


def sequence_model():
    """Return an Embedding with a mask, attention with several tensors, wrapped layers, and one shared twice."""
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        ids = keras.Input((3,), dtype="int32")
        x = layers.Embedding(10, 8, mask_zero=True, name="embedding")(ids)
        x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
        shared = layers.Dense(8, name="shared")
        x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, unroll=True), name="both")(shared(shared(x)))
        return keras.Model(ids, layers.TimeDistributed(layers.Dense(3), name="each")(x))


def test_models_with_masks_attention_and_recurrence_can_be_pruned():
    model = sequence_model()
    pruned = prune_model(model, fit, PruneConfig(final_sparsity=0.5))
    assert measure_sparsity(pruned) == dict.fromkeys(("embedding", "attention", "shared", "both", "each"), 0.5)
    with pytest.raises(AttributeError, match=r"_query_dense|kernel"):
        import_tfmot().sparsity.keras.prune_low_magnitude(import_tf_keras().layers.MultiHeadAttention(2, 4))(
            np.ones((1, 6, 8), "float32")
        )


def test_stock_wrappers_lose_the_mask_of_an_embedding():
    keras = import_tf_keras()
    ids = keras.Input((6,), dtype="int32")
    model = keras.Model(ids, keras.layers.LSTM(3)(keras.layers.Embedding(10, 4, mask_zero=True)(ids)))
    wrap = import_tfmot().sparsity.keras.prune_low_magnitude
    stock = keras.models.clone_model(
        model,
        clone_function=lambda layer: wrap(type(layer).from_config(layer.get_config())) if layer.weights else layer,
    )
    for old, new in zip(model.layers, stock.layers, strict=True):
        new.set_weights(old.get_weights())
    x = np.array([[1, 2, 3, 0, 0, 0]])
    assert np.abs(np.asarray(model(x)) - np.asarray(stock(x))).max() > 1e-3


def test_user_layers_are_pruned_if_they_declare_weights():
    keras = import_tf_keras()

    class Own(keras.layers.Layer):
        def build(self, shape):
            self.factors = self.add_weight("factors", (shape[-1], 8))

        def call(self, x):
            return x @ self.factors

    class Declared(Own):
        def get_prunable_weights(self):
            return [self.factors]

    class Special(keras.layers.Dense):
        pass

    model = keras.Sequential(
        [keras.Input((8,)), Own(name="own"), Declared(name="declared"), Special(4, name="special")]
    )
    plan = pruning_plan(model)
    assert plan.pruned == ("declared", "special")
    assert "get_prunable_weights()" in plan.skipped["own"]
    assert measure_sparsity(prune_model(model, fit)) == {"declared": 0.5, "special": 0.5}


def test_a_model_shared_by_two_others_stays_one():
    keras = import_tf_keras()
    inner = keras.Sequential([keras.layers.Dense(8, name="dense", input_shape=(8,))], name="inner")
    outer = keras.Sequential([inner, keras.layers.ReLU()], name="outer")
    x = keras.Input((8,))
    model = keras.Model(x, outer(inner(x)))
    pruned = prune_model(model, fit)
    assert len(pruned.weights) == len(model.weights) == 2
    assert pruning_plan(model).skipped["outer/inner/dense"].endswith("inner/dense")


def test_a_copy_that_computes_something_else_is_refused_before_any_training():
    keras = import_tf_keras()

    class Forgetful(keras.layers.Layer):
        factor = 1.0

        def call(self, x):
            return x * self.factor

    forgetful = Forgetful()
    forgetful.factor = 2.0  # which its config does not declare
    model = keras.Sequential([keras.layers.Dense(4, input_shape=(8,)), forgetful])
    with refused(TfqError, field="model", word="get_config()"):
        prune_model(model, lambda model, callbacks: pytest.fail("it was trained"))


def test_dead_nodes_of_the_given_model_do_not_matter():
    model = dense_model(8, 4)
    other = import_tf_keras().Input((16,))
    model.get_layer("d1")(model.get_layer("d0")(other))
    assert measure_sparsity(prune_model(model, fit)) == {"d0": 0.5, "d1": 0.5}


def test_restored_weights_of_an_earlier_epoch_are_reported():
    def restoring(model, callbacks):
        before = model.get_weights()
        fit(model, callbacks)
        model.set_weights(before)

    with warned("d0,"):
        pruned = prune_model(dense_model(8, 4), restoring)
    assert measure_sparsity(pruned) == {"d0": 0.5, "d1": 0.5}


def test_several_steps_between_two_callbacks_are_counted_and_reported(monkeypatch):
    built = []
    callback = prune_room.pruning_callback
    monkeypatch.setattr(prune_room, "pruning_callback", lambda *args: built.append(callback(*args)) or built[0])

    def by_twos(model, callbacks):
        model.compile("sgd", "mse", steps_per_execution=2)
        model.fit(np.ones((32, 16)), np.ones((32, 4)), epochs=2, batch_size=8, callbacks=callbacks, verbose=0)

    with warned("steps"):
        pruned = prune_model(dense_model(8, 4), by_twos, PruneConfig(end_step=6))
    assert built[0].steps == 8 and measure_sparsity(pruned) == {"d0": 0.5, "d1": 0.5}


def test_single_weights_have_the_masks_of_tfmot():
    tfmot, keras = import_tfmot(), import_tf_keras()
    kernel = RNG.normal(size=(3, 3, 4, 6)).astype("float32")
    for sparsity in (0.3, 0.5, 0.83):
        wrapper = tfmot.sparsity.keras.prune_low_magnitude(
            keras.layers.Conv2D(6, 3, use_bias=False),
            tfmot.sparsity.keras.ConstantSparsity(sparsity, 0, frequency=1),
            input_shape=(4, 4, 4),
        )
        stock = keras.Sequential([wrapper])
        wrapper.layer.kernel.assign(kernel)
        stock.compile(keras.optimizers.SGD(0.0), "mse")
        steps = [tfmot.sparsity.keras.UpdatePruningStep()]
        stock.fit(np.ones((1, 4, 4, 4)), np.ones((1, 2, 2, 6)), verbose=0, callbacks=steps)
        np.testing.assert_array_equal(mask_of_blocks(np.abs(kernel), sparsity), wrapper.layer.kernel.numpy() != 0)


def test_private_symbols_that_pruning_touches_are_where_they_were():
    import importlib

    core = "tensorflow_model_optimization.python.core.sparsity.keras"
    import_tfmot()
    registry = importlib.import_module(f"{core}.prune_registry").PruneRegistry
    keras = import_tf_keras()
    assert registry._LAYERS_WEIGHTS_MAP[keras.layers.Dense] == ["kernel"]
    lstm = keras.layers.LSTM(2)
    assert registry._RNN_CELLS_WEIGHTS_MAP[type(registry._get_rnn_cells(lstm)[0])] == ["kernel", "recurrent_kernel"]
