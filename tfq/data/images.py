# SPDX-License-Identifier: Apache-2.0
"""Encoded images (JPEG, PNG) as arrays: one decoder for every source that has them. TensorFlow is imported here."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.examples import Piece, examples_a_piece
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.errors import InputError

_BATCH = 256


def decode_image(content: Any) -> Any:
    """A scalar string tensor as a uint8 tensor (height, width, channels), the channels as they are stored."""
    import tensorflow as tf

    # The default inverse DCT is fast and rough: two in three pixels differ from other decoders, by up to 5.
    return tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(content, expand_animations=False),
    )


def image_pieces(
    encoded: Callable[[int, int], Any],
    start: int,
    stop: int,
    config: DataConfig,
    *,
    place: Callable[[int], str],
    explain: Callable[[int, Exception], str],
    has_labels: bool = True,
) -> Iterator[Piece]:
    """Examples start..stop, decoded and resized: float32 where resized, else uint8, (k, height, width, channels).

    encoded: (start, stop) -> a tf.data.Dataset of (encoded bytes, label). place: index -> where this image is.
    explain: (index, what TensorFlow raised) -> what ails this example, a whole sentence.
    Raises InputError on an image that cannot be decoded, and on one of another size where nothing resizes them.
    """
    size = resize_of(config)
    held: list[tuple[NDArray, NDArray]] = []
    count = 0
    for images, labels in _batches(encoded, start, stop, explain):
        if size is not None:
            images = resize_bilinear(images, size)
        held.append((images, labels))
        wanted = held[0][0].shape[1:]
        if images.shape[1:] != wanted:
            is_color = images.shape[-1] != wanted[-1]
            advice = "convert them to one number of channels" if is_color else "give --data.resize=height,width"
            raise InputError(f"{place(start + count)} is {images.shape[1:]}, the ones before are {wanted}: {advice}")
        count += len(images)
        # Images of several sizes come one by one.
        if count >= min(_BATCH, examples_a_piece(images[0].nbytes)):
            yield _piece(held, has_labels)
            start, count, held = start + count, 0, []
    if held:
        yield _piece(held, has_labels)


def _piece(held: list[tuple[NDArray, NDArray]], has_labels: bool) -> Piece:
    images, labels = (parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*held, strict=True))
    return Piece(inputs={UNNAMED: images}, labels=labels if has_labels else None)


def _batches(
    encoded: Callable[[int, int], Any], start: int, stop: int, explain: Callable[[int, Exception], str]
) -> Iterator[tuple[NDArray, NDArray]]:
    """Decoded images and labels in order: in batches as long as the images have one size, then one by one."""
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert
    def decode(content: Any, label: Any) -> Any:
        return decode_image(content), label

    def decoded(first: int) -> Any:
        return encoded(first, stop).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    # TensorFlow quotes the bad record in its message, and fails to decode that message when the record is not UTF-8.
    refusals = (tf.errors.OpError, UnicodeDecodeError)
    done = start
    try:
        first, label = next(decoded(done).take(1).as_numpy_iterator())
        batch = min(_BATCH, examples_a_piece(first.nbytes))
        for images, labels in decoded(done).batch(batch).prefetch(1).as_numpy_iterator():
            yield images, labels
            done += len(images)
        return
    except refusals:
        pass  # another size, or a bad record: the slow way goes on from here and finds which
    try:
        for image, label in decoded(done).prefetch(2).as_numpy_iterator():
            yield image[None], np.asarray(label)[None]
            done += 1
    except refusals as error:
        raise InputError(explain(done, error)) from error


def place_in(lengths: Sequence[int], index: int) -> tuple[int, int]:
    """(which of several things in a row of these lengths, index within it) of item `index` of them all."""
    for number, length in enumerate(lengths):
        if index < length:
            return number, index
        index -= length
    raise AssertionError(f"item {index} is beyond the last")
