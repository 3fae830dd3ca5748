# SPDX-License-Identifier: Apache-2.0
"""Run compression steps on one device and on two replicas, in a separate process, and print the differences as JSON.

A process can divide its CPU into logical devices only before TensorFlow uses it.

Usage: distributed_steps.py STEP...
"""

import json
import sys
import tempfile
import warnings

import numpy as np
import tensorflow as tf
import tf_keras

import tfq

rng = np.random.default_rng(0)
X = rng.normal(size=(16, 6, 6, 1)).astype("float32")
X[12] *= 3  # the second replica has a wider range than the first
Y = rng.integers(0, 3, 16)


def build(keras=tf_keras, trained_statistics=False):
    """Return a small classifier, the same one in each call.

    Batches of a replica have other statistics than the global batch, so they are frozen to compare weights.
    """
    layers = keras.layers
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1), name="x")
    h = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    h = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.5, name="norm")(h))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(layers.Flatten(name="flat")(h)))
    model.get_layer("norm").trainable = trained_statistics
    return model


def fit(model, callbacks):
    """Train two deterministic steps."""
    model.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)


QAT = {"freeze_batch_norm_step": 0}
DISTILLATION = tfq.DistillationConfig(enabled=True, layers=("conv", "head"))


def prune(allocation, calibration=None):
    config = tfq.PruneConfig(final_sparsity=0.5, end_step=1, allocation=allocation)
    return lambda model: tfq.prune(model, fit, config, calibration)


def structured(model):
    config = tfq.StructuredPruningConfig(target_cost=0.7, channel_multiple=1)
    return tfq.prune_structured(model, fit, config, data=X).model


def bridged(model):
    bridge = tfq.to_tf_keras(model)
    result = tfq.qat(bridge.model, fit, tfq.QATConfig(**QAT), calibration=X)
    tfq.return_weights(bridge, result)
    np.testing.assert_array_equal(model.get_layer("head").bias.numpy(), result.get_layer("quant_head").layer.bias)
    return result


STEPS = {
    "ema": lambda model: tfq.qat(model, fit, tfq.QATConfig(**QAT), calibration=X),
    "uncalibrated": lambda model: tfq.qat(model, fit, tfq.QATConfig(**QAT)),
    "lsq": lambda model: tfq.qat(model, fit, tfq.QATConfig(range_estimator="lsq", **QAT), calibration=X),
    "distillation": lambda model: tfq.qat(model, fit, tfq.QATConfig(distillation=DISTILLATION, **QAT), calibration=X),
    "bridged": bridged,
    **{name: prune(name) for name in ("uniform", "erk", "lamp")},
    "sensitivity": prune("sensitivity", X),
    "cluster": lambda model: tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=4, end_step=1)),
    "structured": structured,
}


QAT_STEPS = ("ema", "uncalibrated", "lsq", "distillation", "bridged")


def kernel(model):
    """Return the kernel of the last layer."""
    return next(np.asarray(weight) for weight in model.weights if tuple(weight.shape) == (64, 3))


def difference(first, second):
    """Return the largest difference of two models' weights."""
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return max(float(np.abs(a.astype("float64") - b).max(initial=0)) for a, b in pairs)


def compare(step, strategy):
    """Return what `step` computes on two replicas, compared with one device."""
    keras = __import__("keras") if step == "bridged" else tf_keras
    single = STEPS[step](build(keras))
    with strategy.scope():
        model = build(keras)
    outside = STEPS[step](model)
    result = {"outside": difference(single, outside), "replicas": outside.distribute_strategy.num_replicas_in_sync}
    ranges = [weight for weight in outside.weights if weight.name.endswith(("_min:0", "_max:0"))]
    result["training"] = float(np.abs(kernel(outside) - kernel(model)).max()) if step in QAT_STEPS else None
    result["replicas_differ"] = sum(len({value.numpy().tobytes() for value in weight.values}) > 1 for weight in ranges)
    if len(sys.argv) > 3:  # the slow test
        with strategy.scope():
            result["inside"] = difference(single, STEPS[step](build(keras)))
    return result


def statistics(strategy):
    """Return results for a model whose replicas have different BatchNormalization statistics after training."""
    with strategy.scope():
        model = build(trained_statistics=True)
    fit(model, [])
    variable = model.get_layer("norm").moving_mean
    before = len({value.numpy().tobytes() for value in variable.values})
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.h5")
        same = tfq.convert(model, X) == tfq.convert(tfq.load_model(f"{folder}/model.h5"), X)
        callbacks = [tfq.Int8Evaluation((X, Y)), tfq.TFLiteExport(f"{folder}/model.tflite")]
        result = tfq.qat(model, lambda model, added: fit(model, [*added, *callbacks]), calibration=X)
        exported = tfq.audit(f"{folder}/model.tflite").scheme
    variable = result.get_layer("quant_norm").layer.moving_mean
    return {
        "different_before": before > 1,
        "different_after": len({value.numpy().tobytes() for value in variable.values}) > 1,
        "converts_as_saved": same,
        "exported": exported,
        "parity": tfq.qat_parity(result, tfq.convert(result), X).first_departure is None,
        "preflight": tfq.preflight(model).ok,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {step: compare(step, mirrored) for step in sys.argv[1:] if step in STEPS}
    if "statistics" in sys.argv:
        results["statistics"] = statistics(mirrored)
    print(json.dumps(results))
