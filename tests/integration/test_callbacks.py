# SPDX-License-Identifier: Apache-2.0
"""Int8Evaluation in the real fit of both Kerases."""

import numpy as np
import pytest
from messages import refused, warned
from small_models import small_classifier

import tfq
from tfq import tflite
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot
from tfq.models import build_digits_cnn

BOTH = [import_tf_keras, import_keras]


@pytest.fixture(scope="module")
def digits():
    config = tfq.DataConfig(source="digits")
    return tfq.load_split(config, "train", limit=400), tfq.load_split(config, "val")


def compiled(keras, model=None):
    model = model or small_classifier(keras)
    # XLA, which Keras 3 chooses by default, compiles for longer than this trains.
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


@pytest.mark.parametrize("keras", BOTH)
def test_logs_get_what_evaluating_the_exported_flatbuffer_gives(keras, digits):
    train, val = digits
    keras = keras()
    keras.utils.set_random_seed(0)
    model = compiled(keras, build_digits_cnn(keras))
    callback = tfq.Int8Evaluation(val, train.inputs["x"][:100])
    history = model.fit(train.inputs["x"], train.labels, epochs=2, verbose=0, callbacks=[callback]).history
    assert len(history["val_int8_accuracy"]) == 2
    converted = tfq.convert(model, train.inputs["x"][:100])
    assert callback.flatbuffer == converted
    record = tfq.evaluate(converted, val)
    assert history["val_int8_accuracy"][-1] == record.accuracy
    assert history["val_int8_bytes"][-1] == len(converted)
    own = np.argmax(model.predict(val.inputs["x"], verbose=0), axis=1)
    assert history["val_int8_agreement"][-1] == pytest.approx(_agreement(converted, val, own))


def _agreement(converted, val, own):
    from tfq.backends import LocalBackend, RunRequest
    from tfq.evaluation import predicted_classes, prepare_inputs

    inputs = prepare_inputs(tflite.read(converted), val).arrays
    (quantized,) = LocalBackend().assess(RunRequest(model=converted, inputs=inputs)).outputs
    return np.mean(predicted_classes(quantized) == own)


@pytest.mark.parametrize("keras", BOTH)
def test_later_callbacks_can_monitor_its_values(keras, digits, tmp_path):
    train, val = digits
    module = keras()
    model = compiled(module)
    path = tmp_path / "best.keras"
    model.fit(
        train.inputs["x"],
        train.labels,
        epochs=3,
        verbose=0,
        callbacks=[
            tfq.Int8Evaluation(val, train.inputs["x"][:50], limit=60),
            module.callbacks.ModelCheckpoint(str(path), monitor="val_int8_accuracy", mode="max", save_best_only=True),
            module.callbacks.EarlyStopping(monitor="val_int8_agreement", mode="max", patience=2),
        ],
    )
    assert path.exists()


def test_every_second_epoch_and_the_last(digits):
    train, val = digits
    model = compiled(import_tf_keras())
    callback = tfq.Int8Evaluation(val, train.inputs["x"][:50], every=2, limit=40)
    seen = []
    spy = import_tf_keras().callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append("val_int8_accuracy" in logs)
    )
    model.fit(train.inputs["x"][:64], train.labels[:64], epochs=5, verbose=0, callbacks=[callback, spy])
    assert seen == [False, True, False, True, True]


def test_exports_of_a_qat_model_follow_its_weights_without_representative_dataset(digits):
    train, val = digits
    tf_keras = import_tf_keras()
    quantized = import_tfmot().quantization.keras.quantize_model(small_classifier(tf_keras))
    model = compiled(tf_keras, quantized)
    exports = []
    callback = tfq.Int8Evaluation(val, limit=40)
    spy = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: exports.append(callback.flatbuffer))
    model.fit(train.inputs["x"], train.labels, epochs=2, verbose=0, callbacks=[callback, spy])
    assert exports[0] != exports[1] == tfq.convert(model)
    assert tfq.audit(exports[1], tfq.AuditConfig(require="full_int8")).ok


def test_without_labels_agreement_stands_alone(digits):
    train, val = digits
    model = compiled(import_keras())
    callback = tfq.Int8Evaluation(val.inputs["x"], train.inputs["x"][:50], limit=40)
    history = model.fit(train.inputs["x"], train.labels, epochs=1, verbose=0, callbacks=[callback]).history
    assert "val_int8_accuracy" not in history
    assert len(history["val_int8_agreement"]) == 1


def test_bad_arguments_are_input_errors(digits):
    with refused(tfq.InputError, field="every", got=0):
        tfq.Int8Evaluation(digits[1], every=0)
    with pytest.raises(tfq.InputError):
        tfq.Int8Evaluation((np.zeros((3, 8, 8, 1)), np.zeros(2)))
    other = tfq.Int8Evaluation((np.zeros((3, 4, 4, 1)), np.zeros(3)), digits[0].take(20))
    other.set_model(build_digits_cnn(import_tf_keras()))
    with refused(tfq.InputError, field="data", expected=(8, 8, 1), got=(4, 4, 1)):
        other.evaluate()


@pytest.mark.parametrize("keras", BOTH)
def test_a_sequential_model_is_evaluated_too(keras, digits):
    keras = keras()
    train, val = digits
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = compiled(keras, keras.Sequential(layers))
    callback = tfq.Int8Evaluation(val, train.inputs["x"][:50], evaluation=tfq.EvaluationConfig(limit=30, num_runs=0))
    history = model.fit(train.inputs["x"], train.labels, epochs=1, verbose=0, callbacks=[callback]).history
    assert len(history["val_int8_agreement"]) == 1


def test_one_hot_labels_give_the_accuracy_of_class_numbers(digits):
    train, val = digits
    keras = import_keras()
    model = small_classifier(keras)
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    x, one_hot = train.inputs["x"], np.eye(10, dtype=np.float32)[train.labels]
    callback = tfq.Int8Evaluation((val.inputs["x"], np.eye(10, dtype=np.float32)[val.labels]), x[:50], limit=60)
    history = model.fit(x, one_hot, epochs=1, verbose=0, callbacks=[callback]).history
    assert history["val_int8_accuracy"] == [tfq.evaluate(callback.flatbuffer, val.take(60)).accuracy]


def regression(keras):
    """Return a model that learns four values from eight, and its data."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    y = (x @ np.random.default_rng(1).normal(size=(8, 4))).astype(np.float32)
    layers = [keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    return model, x, y


def worst_difference(outputs, labels):
    """Return the largest absolute error."""
    return float(np.abs(outputs - labels).max())


worst_difference.direction = "lower"


def test_the_epoch_with_the_lowest_error_metric_is_exported(tmp_path):
    keras = import_keras()
    model, x, y = regression(keras)
    held = (x[200:], y[200:])

    class Spoiling(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                self.model.set_weights([weight * 3 for weight in self.model.get_weights()])

    mae = tfq.Int8Evaluation(held, x[:100], evaluation=tfq.EvaluationConfig(metric=("mae",), num_runs=0))
    own = tfq.Int8Evaluation(held, x[:100], metric=worst_difference)
    export = tfq.TFLiteExport(tmp_path / "best.tflite", x[:100], monitor="val_int8_mae")
    callbacks = [Spoiling(), mae, own, export]
    history = model.fit(x[:200], y[:200], epochs=3, verbose=0, callbacks=callbacks).history
    assert "val_int8_accuracy" not in history and "val_int8_agreement" not in history
    assert len(history["val_int8_sqnr_db"]) == len(history["val_int8_worst_difference"]) == 3
    values = history["val_int8_mae"]
    assert values[1] == min(values) < values[0] < values[2]
    assert (export.best_epoch, export.best) == (1, values[1])
    best = tfq.evaluate(
        (tmp_path / "best.tflite").read_bytes(), held, tfq.EvaluationConfig(metric=("mae",), num_runs=0)
    )
    assert best.accuracy == min(values)


def test_labels_that_fit_no_metric_cause_a_warning():
    model, x, y = regression(import_keras())
    callback = tfq.Int8Evaluation((x[200:], y[200:]), x[:100])
    unlabelled = tfq.Int8Evaluation(x[200:], x[:100])
    with warned("mae"), warned("agreement"):
        model.fit(x[:200], y[:200], epochs=2, verbose=0, callbacks=[callback, unlabelled])
