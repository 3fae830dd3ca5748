# SPDX-License-Identifier: Apache-2.0
"""The callbacks with the tf_keras model that a Keras 3 user's model was bridged to."""

import numpy as np

import tfq
from tfq import tflite
from tfq.backends import LocalBackend, RunRequest
from tfq.evaluation import prepare_inputs
from tfq.keras_bridge import import_keras


def test_a_keras_3_model_is_bridged_trained_exported_and_returned(tmp_path):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    theirs = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2, name="stem"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(10, name="head"),
        ]
    )
    train, val = (tfq.load_split(tfq.DataConfig(source="digits"), split) for split in ("train", "val"))
    x, y = train.inputs["x"], train.labels
    bridge = tfq.to_tf_keras(theirs, data=x[:16])
    watch = tfq.Int8Evaluation(val)
    export = tfq.TFLiteExport(tmp_path / "best.tflite", monitor="val_int8_accuracy")
    history = {}

    def fit(model, callbacks):
        from tfq.keras_bridge import import_tf_keras

        loss = import_tf_keras().losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=False)
        history.update(
            model.fit(x, y, epochs=2, batch_size=64, verbose=0, callbacks=[*callbacks, watch, export]).history
        )

    before = [np.array(weight) for weight in theirs.get_weights()]
    trained = tfq.qat(bridge.model, fit, calibration=x)
    # After fit, only biases have moved, by half a step of the accumulator at most. The callback's last file equals the
    # one that is converted now, except for a bias halfway between two steps.
    inputs = prepare_inputs(tflite.read(watch.flatbuffer), val).arrays
    seen, now = (
        LocalBackend().assess(RunRequest(model=model, inputs=inputs)).outputs[0].astype(int)
        for model in (watch.flatbuffer, tfq.convert(trained))
    )
    assert abs(seen - now).max() <= 1 and (seen != now).mean() < 0.01
    assert history["val_int8_accuracy"][-1] == tfq.evaluate(watch.flatbuffer, val).accuracy
    best = tfq.evaluate((tmp_path / "best.tflite").read_bytes(), val)
    assert best.accuracy == max(history["val_int8_accuracy"])
    assert tfq.audit(watch.flatbuffer, tfq.AuditConfig(require="full_int8")).ok
    tfq.return_weights(bridge, trained)
    moved = [np.abs(new - old).max() for new, old in zip(theirs.get_weights(), before, strict=True)]
    assert min(moved) > 0
