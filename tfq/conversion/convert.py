# SPDX-License-Identifier: Apache-2.0
"""Model -> flatbuffer: the whole way through the room."""

import warnings
from typing import Any

import numpy as np

from tfq import calibration, flatbuffer
from tfq.config import ConversionConfig
from tfq.conversion.freeze import fake_quant_flatbuffer, float_flatbuffer
from tfq.conversion.quantize import quantize_flatbuffer
from tfq.conversion.tracing import Trace, trace
from tfq.data import InputSpec, representative_samples
from tfq.errors import InputError, TfqWarning

# "preprocessing" of a flatbuffer's metadata: what its training data had gone through.
Preprocessing = dict[str, Any]


def convert_model(
    model: Any,
    representative_dataset: Any = None,
    config: ConversionConfig | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> bytes:
    """`model` as a flatbuffer: full int8 by default, or float32 as `config.scheme` says.

    model: a functional or sequential model of either Keras, a `Trace` of one (which makes the next conversion
        of the same model faster), or the bytes of a float `.tflite`.
    representative_dataset: what the model will be fed, to calibrate activation ranges: a callable that
        yields lists of arrays, a tf.data.Dataset, an array (n, ...), or {signature: [{name: array}]}. A model out of
        quantization-aware training carries its ranges, and needs none.
    preprocessing: recorded in the flatbuffer for `evaluate` to compare with.

    The flatbuffer has the signature `serving_default` with the model's own input and output names.
    Raises InputError on a model or a data set that cannot be used; warns (TfqWarning) of a doubtful one.
    """
    config = config or ConversionConfig()
    metadata: dict[str, Any] = {"scheme": config.scheme}
    if preprocessing is not None:
        metadata["preprocessing"] = preprocessing
    if isinstance(model, (bytes, bytearray)):
        return _from_flatbuffer(bytes(model), representative_dataset, config, metadata)
    traced = model if isinstance(model, Trace) else trace(model, config.batch_size)
    metadata["keras_layers"] = list(traced.keras_layers)
    if traced.has_fake_quant and config.scheme == "int8":
        return _from_fake_quant(traced, config, metadata)
    unsigned = float_flatbuffer(traced)
    signed = _sign(unsigned, traced, metadata)
    if config.scheme == "float32":
        return signed
    return _post_training(signed, representative_dataset, config)


def _from_flatbuffer(model: bytes, dataset: Any, config: ConversionConfig, metadata: dict[str, Any]) -> bytes:
    """A float flatbuffer of any origin, quantized, or given back as it is."""
    report = flatbuffer.audit_model(model)
    if report.scheme != "float32":
        raise InputError(f"the .tflite is {report.scheme}: wanted a float32 one, which holds what quantization needs")
    if config.scheme == "float32":
        return model
    signatures = flatbuffer.read(model).signatures
    metadata = {**(flatbuffer.read_metadata(model) or {}), **metadata}
    if signatures:
        model = flatbuffer.write_metadata(model, metadata)
    else:
        graph = flatbuffer.read(model).subgraphs[0]
        names = {graph.tensors[index].name: index for index in (*graph.inputs, *graph.outputs)}
        model = flatbuffer.edit_model(
            model,
            signature=(
                {name: index for name, index in names.items() if index in graph.inputs},
                {name: index for name, index in names.items() if index in graph.outputs},
            ),
            metadata=metadata,
        )
    return _post_training(model, dataset, config)


def _from_fake_quant(traced: Trace, config: ConversionConfig, metadata: dict[str, Any]) -> bytes:
    import tensorflow as tf

    input_type = tf.dtypes.as_dtype(config.inference_input_type)
    output_type = tf.dtypes.as_dtype(config.inference_output_type)
    return _sign(fake_quant_flatbuffer(traced, input_type, output_type), traced, metadata)


def _post_training(model: bytes, dataset: Any, config: ConversionConfig) -> bytes:
    """Float bytes -> ranges -> int8 bytes."""
    if dataset is None:
        raise InputError(
            "int8 of a model without ranges of its own needs a representative_dataset: give about "
            f"{config.calibration_steps} real examples, or quantization-aware train the model"
        )
    samples = representative_samples(dataset, input_specs(model), config.calibration_steps)
    for warning in samples.warnings:
        warnings.warn(warning, TfqWarning, stacklevel=4)
    ranges = calibration.calibrate(model, samples.samples)
    model = flatbuffer.inject_ranges(model, ranges.values)
    return quantize_flatbuffer(model, config.inference_input_type, config.inference_output_type)


def input_specs(model: bytes) -> list[InputSpec]:
    """What the flatbuffer wants to be fed, in its own order, under its signature's names where it has one."""
    parsed = flatbuffer.read(model)
    graph = parsed.subgraphs[0]
    names = {index: graph.tensors[index].name for index in graph.inputs}
    for signature in parsed.signatures[:1]:
        names |= {index: name for name, index in signature.inputs.items()}
    return [
        InputSpec(
            name=names[index], shape=_open_shape(graph.tensors[index]), dtype=np.dtype(graph.tensors[index].dtype)
        )
        for index in graph.inputs
    ]


def _open_shape(tensor: flatbuffer.Tensor) -> tuple[int, ...]:
    """The shape, with -1 where the flatbuffer leaves a dimension open."""
    return tensor.shape_signature or tensor.shape


def _sign(model: bytes, traced: Trace, metadata: dict[str, Any]) -> bytes:
    graph = flatbuffer.read(model).subgraphs[0]
    if len(graph.inputs) != len(traced.input_names) or len(graph.outputs) != len(traced.output_names):
        raise InputError(
            f"the model has {len(traced.input_names)} inputs and {len(traced.output_names)} outputs, its flatbuffer "
            f"{len(graph.inputs)} and {len(graph.outputs)}: remove an input that no output depends on, or an output "
            "that is given twice"
        )
    signature = (
        dict(zip(traced.input_names, graph.inputs, strict=True)),
        dict(zip(traced.output_names, graph.outputs, strict=True)),
    )
    return flatbuffer.edit_model(model, signature=signature, metadata=metadata)
