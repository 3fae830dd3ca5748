# SPDX-License-Identifier: Apache-2.0
"""Write the small correct containers of this directory, which tests damage: `python tests/containers/make.py`."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf_keras

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write a model in three formats, and the same eight images in two."""
    for backend in (keras, tf_keras):
        backend.utils.set_random_seed(0)
        model = backend.Sequential(
            [
                backend.layers.Input((8, 8, 1)),
                backend.layers.Conv2D(2, 3, activation="relu", name="conv"),
                backend.layers.BatchNormalization(name="norm"),
                backend.layers.GlobalAveragePooling2D(name="pool"),
                backend.layers.Dense(10, activation="softmax", name="probabilities"),
            ]
        )
        model.save(HERE / f"{backend.__name__}.h5")
        model.save(HERE / f"{backend.__name__}.keras")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (8, 8, 8, 1)), np.arange(8)
    np.savez_compressed(HERE / "digits.npz", x_test=images.astype(np.float32), y_test=labels)
    with tf.io.TFRecordWriter(str(HERE / "digits.tfrecord")) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            encode = tf.io.encode_png if number % 2 else tf.io.encode_jpeg
            encoded = encode(tf.constant(image, tf.uint8)).numpy()
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


if __name__ == "__main__":
    main()
