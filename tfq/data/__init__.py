# SPDX-License-Identifier: Apache-2.0
"""Load data sets as NumPy arrays in the model's units, preprocess them, and check representative datasets."""

from tfq.data.diagnostics import DataDiagnostics, diagnose
from tfq.data.examples import DataSource, Examples, examples_of_arrays, file_fingerprint
from tfq.data.loading import SPLITS, check_readable, load_calibration_split, load_split, source_fingerprint
from tfq.data.output_labels import check_output_names, join_labels, labeled_outputs, labels_of_output
from tfq.data.preprocessing import preprocess, preprocessing_record, real_units, resize_bilinear
from tfq.data.provided import as_split, bind_inputs, is_dataset, shape_fits
from tfq.data.representative import (
    InputSpec,
    RepresentativeSamples,
    SampleDigest,
    batch_size_of,
    check_shapes,
    common_batch_size,
    data_of_main_subgraph,
    elements_of,
    image_advice,
    input_specs,
    representative_samples,
    sample_shape,
)
from tfq.data.split import (
    UNNAMED,
    AnySplit,
    MissingSplitError,
    Split,
    SplitStream,
    class_labels,
    count_classes,
    example_shape,
    is_one_hot,
    without_one_hot,
)

__all__ = [
    "SPLITS",
    "UNNAMED",
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
    "batch_size_of",
    "bind_inputs",
    "check_output_names",
    "check_readable",
    "check_shapes",
    "class_labels",
    "common_batch_size",
    "count_classes",
    "data_of_main_subgraph",
    "diagnose",
    "elements_of",
    "example_shape",
    "examples_of_arrays",
    "file_fingerprint",
    "image_advice",
    "input_specs",
    "is_dataset",
    "is_one_hot",
    "join_labels",
    "labeled_outputs",
    "labels_of_output",
    "load_calibration_split",
    "load_split",
    "preprocess",
    "preprocessing_record",
    "real_units",
    "representative_samples",
    "resize_bilinear",
    "sample_shape",
    "shape_fits",
    "source_fingerprint",
    "without_one_hot",
]
