# SPDX-License-Identifier: Apache-2.0
"""Prepare a `.tflite` from any tool for a conversion, and give the result what only the published file has."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfq import auditing, tflite
from tfq.config import ConversionConfig
from tfq.conversion.op_patterns import with_ops_by_name
from tfq.conversion.quantize import Conversion
from tfq.errors import InputError, warn
from tfq.patterns import parse_address
from tfq.tflite.model_metadata import TFLITE_METADATA


def float_model(model: bytes, dataset: Any, config: ConversionConfig) -> tuple[bytes, Any, ConversionConfig]:
    """Return the float32 form of a published file, its dataset, and the config with names instead of op numbers.

    The chosen signature is extracted first. Op numbers are those of the published file.

    Raises:
        InputError: The file is not a float model, or has no such signature; or an op number is used for a file with
            several subgraphs whose ops are renumbered.
    """
    if config.signature:
        model = tflite.select_signature(model, config.signature)
        if isinstance(dataset, Mapping) and config.signature not in tflite.read(model).input_names:
            dataset = dataset.get(config.signature, dataset)
    is_single = len(tflite.read(model).subgraphs) == 1
    if config.needs_ranges and is_single:
        model, config = with_ops_by_name(model, config)
    floating = auditing.float_source(model)
    if floating is not model and config.needs_ranges and not is_single:
        _refuse_addresses(config)
    _warn_of_batch(floating, config)
    return floating, dataset, config


def with_published_files(result: Conversion, source: bytes) -> Conversion:
    """Return the conversion with the files that `source` carries after its flatbuffer, such as labels.

    There is a TfqWarning if the file has metadata for the TensorFlow Lite Task Library and is quantized now, because
    the metadata describes the published file.
    """
    content, names = tflite.with_associated_files(result.content, source)
    parsed = tflite.read(content)
    types = [tensor.dtype for tensor in (*parsed.main_subgraph.input_tensors, *parsed.main_subgraph.output_tensors)]
    if TFLITE_METADATA in parsed.metadata and "int8" in types:
        copied = " and ".join([TFLITE_METADATA, *names])
        warn(
            f"model: {copied} of the published file are copied unchanged. They describe its float inputs and outputs, "
            "and this file has int8 ones. Set conversion.inference_input_type and inference_output_type to float32 to "
            "keep those, or describe this file with tfq.add_metadata"
        )
    return dataclasses.replace(result, content=content)


def _refuse_addresses(config: ConversionConfig) -> None:
    """Raise InputError if a pattern addresses an op by its number."""
    patterns = [*config.float_layers, *config.int16_layers, *config.per_tensor_layers, *config.int4_layers]
    patterns += [text.rpartition("=")[0].strip() for text in config.calibration.tensors]
    addresses = [pattern for pattern in patterns if parse_address(pattern)]
    if addresses:
        raise InputError(
            f"{addresses[0]}: the ops of this file are renumbered, because its weights or composites are replaced. Use "
            "the name of the layer or of the op's output tensor",
            field="conversion.float_layers",
            expected="names",
            got=addresses[0],
        )


def _warn_of_batch(model: bytes, config: ConversionConfig) -> None:
    """Warn if the file's batch dimension is not what the config asks for, because a conversion cannot change it."""
    sizes = {tensor.shape_signature[0] for tensor in tflite.read(model).main_subgraph.input_tensors if tensor.shape}
    if -1 in sizes and config.batch_size != 0:
        warn(
            f"conversion.batch_size={config.batch_size}: the batch dimension of this .tflite is dynamic and stays so, "
            "which some delegates and microcontrollers do not support. Export the file with a fixed batch, or pass the "
            "Keras model. conversion.batch_size=0 accepts it"
        )
    elif sizes and -1 not in sizes and config.batch_size == 0:
        warn(
            f"conversion.batch_size=0: the batch dimension of this .tflite is fixed ({', '.join(map(str, sizes))}) and "
            "stays so. Export the file with a dynamic batch, or pass the Keras model"
        )
