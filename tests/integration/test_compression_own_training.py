# SPDX-License-Identifier: Apache-2.0
"""A model's own training code through every step of compression: its class, its attributes, additions by its layers."""

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.compression import gate
from tfq.compression.graph import cloned
from tfq.compression.qat import qat as qat_module
from tfq.compression.structured_pruning import prune as structured_module
from tfq.config import DistillationConfig, PruneConfig, QATConfig, StructuredPruningConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.keras_bridge.copies import keep_class

keras, keras3 = import_tf_keras(), import_keras()
IMAGES = np.random.default_rng(0).random((32, 6, 6, 1)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 3, 32)
STEPS = 4  # of one epoch
SLOW = pytest.mark.slow


class Counting(keras.Model):
    """Trains nothing by gradients: each step adds `step` to the head's bias."""

    def __init__(self, step, **kwargs):
        super().__init__(**kwargs)
        self.step, self.head = step, self.layers[-1]
        self.tracker = keras.metrics.Mean(name="tracked")

    def train_step(self, data):
        bias = next(weight for weight in self.head.weights if "bias" in weight.name)
        bias.assign_add(self.step * np.ones(3))
        self.optimizer.iterations.assign_add(1)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.tracker.update_state(self.compute_loss(x, y, self(x, training=True)))
        return {"tracked": self.tracker.result()}


class Sequence(keras.Sequential):
    train_step = Counting.train_step


def ends(library=keras, **conv):
    layers = library.layers
    image = library.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv", **conv)(image)
    x = layers.Dense(8, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
    return {"inputs": image, "outputs": layers.Dense(3, name="head")(x)}


def fit(model, callbacks=()):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    model.fit(IMAGES, LABELS, batch_size=8, verbose=0, callbacks=callbacks)


def prune(model, fit):
    return tfq.prune(model, fit, PruneConfig(frequency=1))


def cluster(model, fit):
    return tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=4, layers=("hidden",)))


def prune_structured(model, fit):
    return tfq.prune_structured(model, fit, StructuredPruningConfig(target_cost=0.7, channel_multiple=1)).model


def qat(model, fit):
    return tfq.qat(model, fit, calibration=IMAGES)


def distilled(model, fit):
    return tfq.qat(model, fit, QATConfig(distillation=DistillationConfig(enabled=True)), calibration=IMAGES)


def head_bias(model):
    return next(weight for weight in model.layers[-1].weights if "bias" in weight.name).numpy()


@pytest.mark.parametrize(
    "step", [prune, qat, *(pytest.param(step, marks=SLOW) for step in (cluster, prune_structured))]
)
def test_a_subclass_is_trained_by_its_own_train_step(step):
    model = Counting(0.5, **ends())
    trained = step(model, fit)
    assert type(trained) is Counting and trained.step == 0.5
    # QAT rounds a bias to steps of its accumulator.
    np.testing.assert_allclose(head_bias(trained), STEPS * 0.5, atol=0.01)
    assert not head_bias(model).any()
    assert trained.tracker is not model.tracker


@pytest.mark.parametrize(
    ("step", "module"),
    [
        (prune, gate),
        pytest.param(qat, qat_module, marks=SLOW),
        pytest.param(prune_structured, structured_module, marks=SLOW),
    ],
)
def test_without_the_class_the_training_would_be_another_one(step, module, monkeypatch):
    monkeypatch.setattr(module, "keep_class", lambda *arguments: None)
    assert abs(head_bias(step(Counting(0.5, **ends()), fit)) - STEPS * 0.5).min() > 0.5


def test_sequential_subclasses_and_nested_models_keep_their_class():
    model = Sequence([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3, name="head")])
    model.step, model.head, model.tracker = 1.0, model.layers[-1], keras.metrics.Mean(name="tracked")
    # With a teacher, another class that trains it surrounds the model's own.
    np.testing.assert_allclose(head_bias(distilled(model, fit)), STEPS, atol=0.01)
    assert type(model) is Sequence
    part = ends()
    nested = Counting(1.0, inputs=part["inputs"], outputs=keras.layers.Dense(3)(keras.Model(**part)(part["inputs"])))
    bridged = tfq.to_tf_keras(nested).model
    assert type(bridged) is Counting and bridged.head is bridged.layers[-1] and bridged.step == 1.0


class OfKeras3(keras3.Model):
    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize("step", [prune, cluster, prune_structured, qat, distilled])
def test_training_code_of_keras_3_is_refused_before_training(step):
    bridged = tfq.to_tf_keras(OfKeras3(**ends(keras3)))
    assert any("train_step" in note for note in bridged.notes)
    with refused(InputError, field="model", got="OfKeras3.train_step", word="to_tf_keras", limit="training-code"):
        step(bridged.model, lambda model, callbacks: pytest.fail("trained"))


def test_a_tf_keras_class_trains_a_bridged_model():
    bridged = tfq.to_tf_keras(OfKeras3(**ends(keras3))).model
    trained = prune(Counting(0.25, inputs=bridged.input, outputs=bridged.output), fit)
    np.testing.assert_allclose(head_bias(trained), STEPS * 0.25, atol=1e-6)
    assert tfq.to_tf_keras(keras3.Model(**ends(keras3))).notes == ()


def test_attributes_are_copied_or_refused_by_name():
    import tensorflow as tf

    model = Counting(0.5, **ends())
    model.scale, model.options = tf.Variable(2.0), {"rates": [0.1, 0.2]}
    model.compile("sgd", "mse")
    copy, pairs = cloned(model)
    keep_class(model, copy, {id(old): new for old, new in pairs}, "prune")
    assert copy.head is copy.get_layer("head") and copy.head is not model.head
    assert copy.scale is not model.scale and float(copy.scale) == 2.0 and copy.options == {"rates": [0.1, 0.2]}
    assert [metric.name for metric in copy.metrics] == ["tracked"] and copy.optimizer is None
    model.teacher = keras.layers.Dense(2, name="foreign")
    with refused(InputError, field="model", got="foreign", word="Counting.teacher", limit="copied-attributes"):
        qat(model, fit)


def test_a_frozen_layer_stays_as_it_is_in_quantization_aware_training():
    model = keras.Model(**ends(trainable=False))
    trained = qat(model, fit)
    kernel = next(weight for weight in trained.get_layer("quant_conv").weights if weight.name.endswith("kernel:0"))
    np.testing.assert_array_equal(kernel.numpy(), model.get_layer("conv").kernel.numpy())
    assert not trained.get_layer("quant_conv").trainable_weights
    trained.get_layer("quant_conv").trainable = True
    assert {weight.name.rpartition("/")[2] for weight in trained.get_layer("quant_conv").trainable_weights} == {
        "kernel:0",
        "bias:0",
    }


@pytest.mark.parametrize(
    "options", [{"activity_regularizer": "l2"}, pytest.param({"kernel_regularizer": "l1"}, marks=SLOW)]
)
def test_regularizers_are_kept_and_a_lost_one_is_an_error(options):
    model = keras.Model(**ends(**options))
    assert len(qat_module.quantized(model).model.losses) == 1
    qat(model, fit)
    if "activity_regularizer" in options:
        plain = cloned(model)[0]
        plain.get_layer("conv")._activity_regularizer = None
        with refused(TfqError, field="model", got=()):
            gate.check_same_function(model, plain)


def test_added_losses_are_kept_by_pruning_and_refused_by_qat():
    import tensorflow as tf

    model = keras.Model(**ends())
    model.add_loss(tf.reduce_mean(model.get_layer("hidden").output))
    pruned = prune(model, fit)
    pruned(IMAGES)
    assert len(pruned.losses) == 1
    with refused(InputError, field="model", got=("add_loss",), limit="added-losses"):
        qat(model, fit)
