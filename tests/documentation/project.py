# SPDX-License-Identifier: Apache-2.0
"""The reader's project that the documentation assumes: a Keras 3 model and a folder of photographs."""

from pathlib import Path

import numpy as np

CLASSES = ("digit_0", "digit_1", "digit_2", "digit_3", "digit_4")
_SIDE = 24


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Return real handwritten digits, 0 to 4: uint8 images (n, 24, 24, 3) and their classes (n,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = digits.target < len(CLASSES)
    images = np.clip(digits.images[chosen] * 16, 0, 255).astype(np.uint8)
    images = images.repeat(_SIDE // 8, axis=1).repeat(_SIDE // 8, axis=2)
    return np.stack([images] * 3, axis=-1), digits.target[chosen].astype(np.int64)


def write_photos(folder: Path) -> None:
    """Write the images as JPEG files: FOLDER/SPLIT/CLASS/NUMBER.jpg, numbered through; four of five train."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(*images_and_labels(), strict=True)):
        path = folder / ("test" if number % 5 == 0 else "train") / CLASSES[label] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)


def write_model(path: Path) -> None:
    """Train a small Keras 3 classifier on these images, with pixels from 0 to 1, and save it."""
    import keras

    keras.utils.set_random_seed(0)
    images, labels = images_and_labels()
    model = keras.Sequential(
        [
            keras.layers.Input((_SIDE, _SIDE, 3)),
            keras.layers.Conv2D(8, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.SeparableConv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(len(CLASSES), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images / np.float32(255), labels, epochs=12, batch_size=64, verbose=0)
    model.save(path)


def write_project(folder: Path) -> None:
    """Write `model.keras` and `photos/` into a folder."""
    write_photos(folder / "photos")
    write_model(folder / "model.keras")
