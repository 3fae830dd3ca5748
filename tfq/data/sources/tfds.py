# SPDX-License-Identifier: Apache-2.0
"""The source `tfds:NAME`: a data set of TensorFlow Datasets, an optional package."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, hold_out_val
from tfq.data.sources.folder import image_pieces
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError, install_hint
from tfq.registry import register

# The names of splits in data sets, the most likely first.
_SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


def read_tfds(address: str, config: DataConfig, split: str) -> Examples:
    """Return the data set's supervised (input, label) pairs in the order of its files; labels are int64.

    Images are decoded exactly, as by the other sources; other inputs are unchanged. Without a validation split, the
    last tenth of train is val.

    Args:
        address: NAME, NAME/CONFIG or NAME/CONFIG:VERSION, as for tfds.builder. It is stored in $TFDS_DATA_DIR or
            ~/tensorflow_datasets, and downloaded if it is missing.
        config: Says whether to resize images.
        split: "train", "val" or "test".

    Raises:
        MissingSplitError: The data set has no such split.
        InputError: The data set cannot be loaded or has no (input, label) pairs.
    """
    if not address:
        raise InputError(
            "data.source=tfds has no data set: expected tfds:NAME, such as tfds:mnist",
            field="data.source",
            expected="tfds:NAME",
            got="tfds",
        )
    builder = tfds_builder(address)
    infos = builder.info.splits
    names = {
        own_name: next((name for name in tfds_names if name in infos), None)
        for own_name, tfds_names in _SPLIT_NAMES.items()
    }
    stored_in = "train" if split == "val" and names["val"] is None else split
    name = names[stored_in]
    if name is None or not infos[name].num_examples:
        raise MissingSplitError(
            f"tfds:{address} has no {split} split, it has {', '.join(sorted(infos)) or 'none'}",
            field="split",
            expected=tuple(sorted(infos)),
            got=split,
        )
    examples = _examples(builder, name, config, f"tfds:{address} ({name})")
    return (
        hold_out_val(examples, split, f"tfds:{address}") if stored_in == "train" and names["val"] is None else examples
    )


def tfds_builder(address: str) -> Any:
    """Return the builder of a data set, downloaded and prepared if necessary."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"data.source=tfds:{address} needs tensorflow-datasets ({error}): {install_hint('tfds')}. Or use "
            "folder:DIR, npz:PATH or tfrecord:GLOB",
            field="data.source",
            got=f"tfds:{address}",
        ) from error
    try:
        builder = tfds.builder(address)
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # of many types: an unknown name, no network, a full disk, a missing package
        # Only the first line, because a list of all data sets follows it.
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"data.source=tfds:{address} cannot be loaded ({message}). Check the name. Without internet, copy the "
            f"prepared data set to {os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'}, or use folder:DIR, "
            "npz:PATH or tfrecord:GLOB",
            field="data.source",
            got=f"tfds:{address}",
        ) from error
    return builder


def _examples(builder: Any, name: str, config: DataConfig, where: str) -> Examples:
    keys = builder.info.supervised_keys
    features = builder.info.features
    if not isinstance(keys, Sequence) or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise InputError(
            f"{where} does not declare an (input, label) pair; its features are {', '.join(features)}. Save the two "
            "that you need in an .npz file and use data.source=npz:PATH",
            field="data.source",
            expected="an (input, label) pair",
            got=tuple(features),
        )
    image_key, label_key = keys
    is_image = type(features[image_key]).__name__ == "Image"
    class_names = tuple(getattr(features[label_key], "names", None) or ())

    def dataset(start: int, stop: int) -> Any:
        import tensorflow_datasets as tfds

        decoders = {image_key: tfds.decode.SkipDecoding()} if is_image else None
        # If shards were interleaved, part of a split would have another order than all of it.
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        part = f"{name}[{start}:{stop}]"
        result = builder.as_dataset(split=part, shuffle_files=False, decoders=decoders, read_config=in_order)
        return result.map(lambda example: (example[image_key], example[label_key]))

    def read(start: int, stop: int) -> Iterator[Piece]:
        pieces = _image_pieces(dataset, start, stop, config, where) if is_image else _pieces(dataset, start, stop)
        for piece in pieces:
            labels = np.asarray(piece.labels)
            yield Piece(
                inputs=piece.inputs,
                labels=labels if labels.dtype.kind == "f" else class_labels(labels, where, start),
            )
            start += len(piece)

    count = builder.info.splits[name].num_examples
    return Examples(num_examples=count, read=read, class_names=class_names)


def _image_pieces(dataset: Any, start: int, stop: int, config: DataConfig, where: str) -> Iterator[Piece]:
    return image_pieces(
        dataset,
        start,
        stop,
        config,
        place=lambda index: f"{where}: image {index}",
        explain=lambda index, error: f"{where}: image {index} cannot be decoded as JPEG or PNG. Remove it",
    )


def _pieces(dataset: Any, start: int, stop: int) -> Iterator[Piece]:
    """Yield inputs that are not images and have one shape."""
    spec = dataset(start, start + 1).element_spec[0]
    if isinstance(spec, dict) or not getattr(spec, "shape", None) or not spec.shape.is_fully_defined():
        raise InputError(
            f"the inputs of this data set are {spec}, expected images or numbers of one shape. Save them in an .npz "
            "file and use data.source=npz:PATH",
            field="data.source",
            expected="images, or numbers of one shape",
            got=str(spec),
        )
    step = examples_per_piece(spec.shape.num_elements() * spec.dtype.size)
    for inputs, labels in dataset(start, stop).batch(step).as_numpy_iterator():
        yield Piece(inputs={UNNAMED: inputs}, labels=labels)


def _fingerprint(address: str, config: DataConfig) -> object:
    info = tfds_builder(address).info
    return [info.full_name, *(f"{name} {part.num_examples} {part.num_bytes}" for name, part in info.splits.items())]


register(
    DataSource(
        name="tfds",
        help="a supervised data set of tensorflow_datasets; NAME can be NAME/CONFIG:VERSION",
        address="NAME",
        read=read_tfds,
        fingerprint=_fingerprint,
        extra="tfds",
    )
)
