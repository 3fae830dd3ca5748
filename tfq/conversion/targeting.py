# SPDX-License-Identifier: Apache-2.0
"""What a target asks of a conversion, before it and after it."""

import dataclasses
import warnings

from tfq import flatbuffer
from tfq.config import AuditConfig, ConversionConfig
from tfq.errors import InputError, TfqWarning

_MOST_TOLD = 8


def fitted(config: ConversionConfig) -> ConversionConfig:
    """`config` with what config.target needs: one scale for each dense weight, where it takes no more.

    A config does not tell what was asked for from what is a default, so only what the target can never run is refused.
    Raises InputError on such a scheme, type of inputs or outputs, or dynamic batch.
    """
    if not config.target:
        return config
    target = flatbuffer.TARGETS[config.target]
    asked = f"target={config.target}"
    if config.scheme not in target.schemes:
        raise InputError(f"{asked} with scheme={config.scheme}: wanted {_either(target.schemes)} for {target.title}")
    for name, kind in (("inference_input_type", config.input_type), ("inference_output_type", config.output_type)):
        if kind not in target.io_types:
            raise InputError(f"{asked} with {name}={kind}: wanted {_either(target.io_types)} for {target.title}")
    if target.static_shapes and config.batch_size == 0:
        raise InputError(f"{asked} with batch_size=0: {target.title} wants fixed shapes: leave it at 1")
    return dataclasses.replace(config, per_channel_dense=config.per_channel_dense and target.per_channel_dense)


def warn_of_target(content: bytes, config: ConversionConfig) -> None:
    """TfqWarning of each thing in the flatbuffer `content` that config.target cannot run."""
    if not config.target:
        return
    asked = AuditConfig(
        require=config.target,
        inference_input_type=config.inference_input_type,
        inference_output_type=config.inference_output_type,
    )
    failures = flatbuffer.audit_model(content, asked).failures
    for finding in failures[:_MOST_TOLD]:
        warnings.warn(f"{config.target}: {finding.message}", TfqWarning, stacklevel=4)
    if len(failures) > _MOST_TOLD:
        told = f"{config.target}: {len(failures) - _MOST_TOLD} more: tfq audit --require={config.target} tells all"
        warnings.warn(told, TfqWarning, stacklevel=4)


def check_granularity(content: bytes, config: ConversionConfig) -> None:
    """Raises InputError where quantization-aware training has fixed a scale for each channel, and one is asked for."""
    report = flatbuffer.audit_model(content)
    if not config.per_channel and report.weights_per_channel:
        what, count = "per_channel=False", report.weights_per_channel
    elif not config.per_channel_dense and report.dense_per_channel:
        what, count = "per_channel_dense=False", report.dense_per_channel
    else:
        return
    raise InputError(
        f"the model is quantization-aware trained with a scale for each channel of {count} weights, which {what} "
        "cannot change: train it with per-tensor quantizers, or convert the model that it was before"
    )


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(choices)
