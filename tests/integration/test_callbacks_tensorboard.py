# SPDX-License-Identifier: Apache-2.0
"""The values of Int8Evaluation reach TensorBoard's event files in the fit of both Kerases."""

import numpy as np
import pytest
from small_models import small_classifier

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def scalars(directory):
    """Return {tag: values by epoch} of the event files in a directory, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(directory), size_guidance={TENSORS: 0}).Reload()
    return {
        tag: [float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.startswith("epoch_")
    }


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_every_value_of_every_epoch_is_in_the_event_files(keras, tmp_path):
    keras = keras()
    train = tfq.load_split(tfq.DataConfig(source="digits"), "train", limit=200)
    val = tfq.load_split(tfq.DataConfig(source="digits"), "val").take(50)
    model = small_classifier(keras)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    x = train.inputs["x"]
    callbacks = [tfq.Int8Evaluation(val, x[:50]), keras.callbacks.TensorBoard(tmp_path, write_graph=False)]
    history = model.fit(x, train.labels, epochs=2, verbose=0, callbacks=callbacks).history
    # Keras writes names that begin with "val_" to a separate directory, without that prefix.
    written = scalars(tmp_path / "validation")
    for name in ("accuracy", "agreement", "sqnr_db", "bytes", "collapsed"):
        assert written[f"epoch_int8_{name}"] == list(np.float32(history[f"val_int8_{name}"])), name
    assert set(scalars(tmp_path / "train")) >= {"epoch_loss", "epoch_accuracy"}
    assert not any("int8" in tag for tag in scalars(tmp_path / "train"))
