# SPDX-License-Identifier: Apache-2.0
"""Small models whose int8 form loses its information, each for one cause, and calibration samples for them."""

import numpy as np


def smooth_images(count: int = 60, size: int = 16, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.uniform(size=(count, 4, 4, channels)), np.ones((1, size // 4, size // 4, 1))).astype(np.float32)


def detector(keras, scores: str = "sigmoid", box_size: float = 300.0):
    """Return boxes in pixels and scores of a fixed scale, in one output."""
    layers = keras.layers
    keras.utils.set_random_seed(4)
    inputs = keras.Input((16, 16, 3), name="image")
    features = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    boxes = layers.Rescaling(box_size, name="pixels")(layers.Conv2D(4, 1, name="box")(features))
    classes = layers.Activation(scores, name="score")(layers.Conv2D(3, 1, name="cls")(features))
    return keras.Model(inputs, layers.Concatenate(name="pred")([boxes, classes])), smooth_images()


def _waves(count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    time = np.arange(2000) / 2000
    waves = [
        np.sin(2 * np.pi * rng.uniform(20, 400) * time + rng.uniform(0, 6)) * rng.uniform(0.2, 1)
        + rng.normal(0, 0.05, 2000)
        for _ in range(count)
    ]
    return np.stack(waves).astype(np.float32)


def mel_front_end(keras):
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2000,), name="wav")
    hidden = layers.MelSpectrogram(
        fft_length=256, sequence_stride=128, sampling_rate=2000, num_mel_bins=20, name="front_end"
    )(inputs)
    hidden = layers.Reshape((*hidden.shape[1:], 1))(hidden)
    hidden = layers.Conv2D(8, 3, activation="relu", name="conv")(hidden)
    return keras.Model(inputs, layers.Dense(3, name="p")(layers.GlobalAveragePooling2D()(hidden))), _waves()


def stft_front_end(keras):
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2000, 1), name="wav")
    hidden = layers.STFTSpectrogram(mode="log", frame_length=256, frame_step=128, fft_length=256, name="front_end")(
        inputs
    )
    hidden = layers.Conv1D(8, 3, activation="relu", name="conv")(hidden)
    return keras.Model(inputs, layers.Dense(3, name="p")(layers.GlobalAveragePooling1D()(hidden))), _waves()[..., None]


def tabular(keras):
    """Return columns of standard deviations from 0.1 to 100, with a Normalization in the model."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    sizes = np.logspace(-1, 2, 8).astype(np.float32)
    samples = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32) * sizes
    inputs = keras.Input((8,), name="x")
    normalized = layers.Normalization(mean=np.zeros(8), variance=sizes**2, name="norm")(inputs)
    return keras.Model(inputs, layers.Dense(1, name="p")(layers.Dense(16, activation="relu")(normalized))), samples


def small_output(keras):
    """Return a regression of three values, one of which is a thousand times smaller than the others."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3), name="image")
    hidden = layers.Conv2D(8, 3, activation="relu")(inputs)
    hidden = layers.Dense(3, name="dense")(layers.GlobalAveragePooling2D()(hidden))
    factors = np.array([1, 1, 1e-3], np.float32)
    return keras.Model(inputs, layers.Rescaling(factors.tolist(), name="units")(hidden)), smooth_images()


def classifier(keras):
    """Return a model that converts well to int8."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3), name="image")
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="p")(layers.GlobalAveragePooling2D()(hidden))), smooth_images()


def masked_log_softmax(keras):
    """Return scores with the largest ones excluded, like an app's list of words that may not come next."""
    layers, ops = keras.layers, keras.ops
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3), name="image")
    hidden = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    scores = layers.Conv2D(6, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=4.0))(hidden)
    allowed = ops.less(scores, 4.0)
    return keras.Model(inputs, ops.log_softmax(ops.where(allowed, scores, -1e9))), smooth_images()
