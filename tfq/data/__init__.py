# SPDX-License-Identifier: Apache-2.0
"""Data sets as NumPy arrays in the model's own real units, preprocessing, and the representative dataset."""

from tfq.data.binding import bind_inputs
from tfq.data.preprocessing import preprocess, preprocessing_record, real_units, resize_bilinear
from tfq.data.representative import InputSpec, RepresentativeSamples, representative_samples
from tfq.data.sources import SOURCES, SPLITS, as_split, load_calibration_split, load_split
from tfq.data.split import MissingSplitError, Split

__all__ = [
    "SOURCES",
    "SPLITS",
    "InputSpec",
    "MissingSplitError",
    "RepresentativeSamples",
    "Split",
    "as_split",
    "bind_inputs",
    "load_calibration_split",
    "load_split",
    "preprocess",
    "preprocessing_record",
    "real_units",
    "representative_samples",
    "resize_bilinear",
]
