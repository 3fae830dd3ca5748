# SPDX-License-Identifier: Apache-2.0
"""The data sources that come with tfq, one file each. Importing this package registers them."""

from tfq.data.sources import (
    coco,
    csv_table,
    digits,
    eembc,
    folder,
    idx,
    keras_datasets,
    masks,
    npz,
    tfds,
    tfrecord,
    wav,
)

__all__ = [
    "coco",
    "csv_table",
    "digits",
    "eembc",
    "folder",
    "idx",
    "keras_datasets",
    "masks",
    "npz",
    "tfds",
    "tfrecord",
    "wav",
]
