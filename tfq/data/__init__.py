# SPDX-License-Identifier: Apache-2.0
"""Data sets as NumPy arrays in the model's own real units, preprocessing, and the representative dataset."""

from tfq.data.diagnostics import DataDiagnostics, diagnose
from tfq.data.examples import DataSource, Examples, examples_of_arrays, file_fingerprint
from tfq.data.loading import SPLITS, load_calibration_split, load_split, source_fingerprint
from tfq.data.preprocessing import preprocess, preprocessing_record, real_units, resize_bilinear
from tfq.data.provided import as_split, bind_inputs, shape_fits
from tfq.data.representative import (
    InputSpec,
    RepresentativeSamples,
    SampleDigest,
    input_specs,
    representative_samples,
)
from tfq.data.split import AnySplit, MissingSplitError, Split, SplitStream, count_classes, example_shape

__all__ = [
    "SPLITS",
    "AnySplit",
    "DataDiagnostics",
    "DataSource",
    "Examples",
    "InputSpec",
    "MissingSplitError",
    "RepresentativeSamples",
    "SampleDigest",
    "Split",
    "SplitStream",
    "as_split",
    "bind_inputs",
    "count_classes",
    "diagnose",
    "example_shape",
    "examples_of_arrays",
    "file_fingerprint",
    "input_specs",
    "load_calibration_split",
    "load_split",
    "preprocess",
    "preprocessing_record",
    "real_units",
    "representative_samples",
    "resize_bilinear",
    "shape_fits",
    "source_fingerprint",
]
