# SPDX-License-Identifier: Apache-2.0
"""Check a conversion against its target, before and after it."""

import dataclasses

from tfq import auditing, registry, tflite
from tfq.auditing.schemes import WHOLE_NUMBERS
from tfq.config import AuditConfig, ConversionConfig
from tfq.conversion.fake_quant import WeightGranularity
from tfq.errors import InputError, warn
from tfq.text_table import listed

_MOST_NAMED = 8


def config_for_target(config: ConversionConfig) -> ConversionConfig:
    """Return `config` with what config.target needs: one scale for each dense weight, if it takes no more.

    A config does not distinguish a chosen value from a default, so only what the target can never run is refused.

    Raises:
        InputError: The target cannot run the scheme, the type of inputs or outputs, or a dynamic batch.
    """
    if not config.target:
        return config
    target = registry.get(auditing.Target, config.target, field="conversion.target")
    asked = f"target={config.target}"
    if config.scheme not in target.schemes:
        raise InputError(
            f"{asked} with scheme={config.scheme}: expected {_either(target.schemes)} for {target.title}",
            field="conversion.scheme",
            expected=target.schemes,
            got=config.scheme,
        )
    for name, kind in (("inference_input_type", config.input_type), ("inference_output_type", config.output_type)):
        if kind not in target.io_types:
            raise InputError(
                f"{asked} with {name}={kind}: expected {_either(target.io_types)} for {target.title}",
                field=f"conversion.{name}",
                expected=target.io_types,
                got=kind,
            )
    if target.static_shapes and config.batch_size == 0:
        raise InputError(
            f"{asked} with batch_size=0: {target.title} wants fixed shapes: leave it at 1",
            field="conversion.batch_size",
            expected=1,
            got=0,
        )
    return dataclasses.replace(config, per_channel_dense=config.per_channel_dense and target.per_channel_dense)


def warn_of_target(content: bytes, config: ConversionConfig) -> None:
    """Warn (TfqWarning) of each op or tensor of the flatbuffer `content` that config.target cannot run."""
    if not config.target:
        return
    asked = AuditConfig(
        require=config.target,
        inference_input_type=config.inference_input_type,
        inference_output_type=config.inference_output_type,
    )
    failures = auditing.audit_model(content, asked).failures
    for finding in failures[:_MOST_NAMED]:
        warn(f"{config.target}: {finding.message}")
    if len(failures) > _MOST_NAMED:
        more = len(failures) - _MOST_NAMED
        message = f"{config.target}: {more} more: an audit with audit.require={config.target} lists all"
        warn(message)


def with_trained_granularity(trained: WeightGranularity, config: ConversionConfig) -> ConversionConfig:
    """Return `config` with the granularity that the weights were trained with, if that is coarser.

    Dense weights that were trained with a scale for each unit and get one for all, as targets ask for, are a warning
    (TfqWarning).

    Raises:
        InputError: A scale for each channel was trained, and one for all is asked for.
    """
    if not config.per_channel and trained.per_channel:
        raise InputError(
            f"the model is quantization-aware trained with a scale for each channel of {trained.per_channel} weights, "
            "which per_channel=False cannot change: train it with per-tensor quantizers, or convert the model from "
            "before that training",
            field="conversion.per_channel",
            expected=True,
            got=False,
        )
    if not config.per_channel_dense and trained.dense_per_channel:
        warn(
            f"{trained.dense_per_channel} dense weights were trained with a scale for each unit and get one for all: "
            "evaluate the flatbuffer, whose rounding is not the one that was trained"
        )
    return dataclasses.replace(
        config,
        per_channel=config.per_channel and (trained.per_channel > 0 or trained.per_tensor == 0),
        per_channel_dense=config.per_channel_dense and trained.dense_per_tensor == 0,
    )


def ops_without_range(content: bytes) -> list[str]:
    """Return "NAME (layer)" of each op that stayed float in a flatbuffer whose ranges come from training alone."""
    return [
        f"{op.name} ({op.keras_layer or 'no layer'})"
        for graph in tflite.read(content).subgraphs
        for op in graph.ops
        if op.name not in ("QUANTIZE", "DEQUANTIZE")
        and any(graph.tensors[index].dtype == "float32" for index in op.outputs)
    ]


def warn_of_floats(content: bytes, config: ConversionConfig, *, has_data: bool) -> None:
    """Give a TfqWarning that names the inputs, outputs and ops of `content` that stay float and were not asked to.

    Args:
        content: An integer flatbuffer.
        config: What was asked for: its float_layers, and the types of inputs and outputs.
        has_data: Whether a representative dataset was provided, or its ranges.
    """
    if not config.needs_ranges:
        return
    floats, borders = _unasked_floats(content, config)
    if not floats and not borders:
        return
    parts = [f"{listed(floats)} stay float" if floats else "", *borders]
    if has_data:
        advice = "replace these layers, or name them in conversion.float_layers if they may be float"
    else:
        advice = "quantization-aware training gave them no range: give a representative_dataset as well"
    message = f"{config.scheme}: {'; '.join(filter(None, parts))}: {advice}"
    warn(message)


def _unasked_floats(content: bytes, config: ConversionConfig) -> tuple[list[str], list[str]]:
    """Return ("NAME (layer)" of each float op, what is wrong with each input or output) that config does not ask for.

    What a warning about config.target has named is left out, and so is a CAST that reads whole numbers.
    """
    asked = AuditConfig().for_conversion(dataclasses.replace(config, target=""))
    parsed = tflite.read(content)
    named = set()
    if config.target:
        of_target = AuditConfig().for_conversion(config)
        named = {(item.subgraph, item.op_index) for item in auditing.audit_model(content, of_target).failures}
    floats, borders = [], []
    for finding in auditing.audit_model(content, asked).failures:
        if finding.subgraph is None:
            continue
        graph = parsed.subgraphs[finding.subgraph]
        if finding.kind == "io_type":
            borders.append(finding.message.partition(", wanted")[0])
        elif finding.op_index is not None and (graph.index, finding.op_index) not in named:
            op = graph.ops[finding.op_index]
            if _computes_in_float(graph, op) and not _only_changes_type(graph, op):
                floats.append(f"{op.name} ({graph.layer_of(op)})")
    return list(dict.fromkeys(floats)), borders


def _computes_in_float(graph: tflite.Subgraph, op: tflite.Op) -> bool:
    """Check whether `op` writes floats, or compares them."""
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        return False
    tensors = op.tensors if any(graph.tensors[index].dtype == "bool" for index in op.outputs) else op.outputs
    return any(graph.tensors[index].dtype == "float32" for index in tensors)


def _only_changes_type(graph: tflite.Subgraph, op: tflite.Op) -> bool:
    """Check whether `op` is a CAST of whole numbers that only QUANTIZEs read: nothing is computed in float.

    No converter has an int8 form of it; `(1 - cast(keep)) * -1e9`, which makes a padding mask, is the usual case.
    """
    if op.name != "CAST" or graph.tensors[op.inputs[0]].dtype not in WHOLE_NUMBERS:
        return False
    readers = [other for other in graph.ops if op.outputs[0] in other.inputs]
    return op.outputs[0] not in graph.outputs and all(reader.name == "QUANTIZE" for reader in readers)


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(choices)
