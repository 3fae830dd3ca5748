# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training of a Keras 3 model, which tfmot itself rejects.

    python examples/qat_keras3.py          about one minute; needs scikit-learn (pip install 'tfq[digits]')

The float model is trained for as many epochs more, so that QAT is not credited with a gain of the longer training.
Post-training quantization uses one scale for each weight (per_channel=False) here, which costs more accuracy.
"""

import keras
import numpy as np
import tf_keras
from sklearn.datasets import load_digits

import tfq

EPOCHS, QAT_EPOCHS = 15, 5


def build_model() -> keras.Model:
    """Build a small residual network with the Keras 3 functional API."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = skip = keras.layers.Activation("silu")(x)
    x = keras.layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.add([keras.layers.Activation("silu")(x), skip])
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))


def main() -> None:
    digits = load_digits()
    x, y = digits.images[..., np.newaxis].astype(np.float32), digits.target.astype(np.int64)
    train, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    model = build_model()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(*train, epochs=EPOCHS, batch_size=64, verbose=0)

    print(tfq.preflight(model).to_text())  # what QAT can do with each layer

    # tfmot works on Keras 2 models: tfq rebuilds the model with tf_keras layers, and checks that it computes the same.
    bridge = tfq.to_tf_keras(model)

    def fit(qat_model: tf_keras.Model, callbacks: list) -> None:
        """Train with your own loop; pass the callbacks on."""
        qat_model.compile(tf_keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
        qat_model.fit(*train, epochs=QAT_EPOCHS, batch_size=64, verbose=0, callbacks=callbacks)

    qat_model = tfq.qat(bridge.model, fit, calibration=train[0][:200])

    per_tensor = tfq.ConversionConfig(per_channel=False)
    int8_ptq = tfq.convert(model, train[0][:200], per_tensor)
    model.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
    model.fit(*train, epochs=QAT_EPOCHS, batch_size=64, verbose=0)
    float32 = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    int8_qat = tfq.convert(qat_model, config=tfq.ConversionConfig())  # no data: QAT has learned the ranges

    assert tfq.audit(int8_qat, tfq.AuditConfig(require="full_int8")).ok
    print(tfq.qat_parity(qat_model, int8_qat, test[0]).to_text())  # does the file compute what the QAT model computes?
    tfq.return_weights(bridge, qat_model)  # the trained weights, in the Keras 3 model that you started with
    for name, content in (("float, as long", float32), ("int8, PTQ", int8_ptq), ("int8, QAT", int8_qat)):
        print(f"{name}: accuracy {tfq.evaluate(content, test).accuracy:.1%}, {len(content):,} bytes")


if __name__ == "__main__":
    main()
