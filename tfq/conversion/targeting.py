# SPDX-License-Identifier: Apache-2.0
"""Check a conversion against its target: the config before it, and the flatbuffer after it."""

import dataclasses

from tfq import auditing, registry, tflite
from tfq.auditing.composition import CONVERTED, Composition
from tfq.auditing.schemes import INDEX_TYPES
from tfq.config import AuditConfig, ConversionConfig
from tfq.conversion.average_pools import with_exact_average_pools
from tfq.conversion.fake_quant import WeightGranularity
from tfq.conversion.graph_rewrites import without_unread_ops
from tfq.conversion.strided_pointwise import without_strided_pointwise
from tfq.errors import InputError, warn
from tfq.text_table import alternatives, listed, shown
from tfq.tflite.index_values import index_tensors

# The number of findings that get a warning each.
_MAX_WARNINGS = 8


def config_for_target(config: ConversionConfig) -> ConversionConfig:
    """Adapt the config to its target: per-tensor dense weights if the target does not support per-channel ones.

    A config does not distinguish a chosen value from a default, so only settings that the target can never run are
    errors.

    Raises:
        InputError: The target cannot run the scheme, the type of inputs or outputs, or a dynamic batch.
    """
    if not config.target:
        return config
    target = registry.get(auditing.Target, config.target, field="conversion.target")
    setting = f"conversion.target={config.target}"
    if config.scheme not in target.schemes:
        raise InputError(
            f"{setting} with scheme={config.scheme} cannot run: {target.title} needs scheme "
            f"{alternatives(target.schemes)}",
            field="conversion.scheme",
            expected=target.schemes,
            got=config.scheme,
        )
    for name, kind in (("inference_input_type", config.input_type), ("inference_output_type", config.output_type)):
        if kind not in target.io_types:
            raise InputError(
                f"{setting} with {name}={kind} cannot run: {target.title} needs {alternatives(target.io_types)}",
                field=f"conversion.{name}",
                expected=target.io_types,
                got=kind,
            )
    if target.static_shapes and config.batch_size == 0:
        raise InputError(
            f"{setting} with batch_size=0 cannot run: {target.title} needs fixed shapes. Use conversion.batch_size=1",
            field="conversion.batch_size",
            expected=1,
            got=0,
        )
    return dataclasses.replace(config, per_channel_dense=config.per_channel_dense and target.per_channel_dense)


def with_target_forms(content: bytes, config: ConversionConfig) -> bytes:
    """Return the flatbuffer `content` without the ops that config.target computes otherwise or crashes on.

    Exact replacements take their place.
    """
    target = auditing.find_target(config.target)
    if target is None:
        return content
    if not target.unread_results:
        content = without_unread_ops(content)
    if not target.strided_pointwise:
        content = without_strided_pointwise(content)
    return content if target.exact_average_pools else with_exact_average_pools(content)


def is_ready_for(model: bytes, config: ConversionConfig) -> bool:
    """Check whether a file already has the scheme of the config, and its target needs other forms of some ops.

    Such a file, which another tool may have quantized, is not quantized again: only these ops are replaced.
    """
    scheme = Composition(tflite.read(model)).scheme
    has_scheme = config.scheme != "float32" and CONVERTED.get(scheme, scheme) == config.scheme
    return has_scheme and with_target_forms(model, config) is not model


def needs_fixed_shapes(config: ConversionConfig) -> bool:
    """Check whether config.target runs only models with fixed shapes."""
    target = auditing.find_target(config.target)
    return target is not None and target.static_shapes


def warn_of_kept_file(config: ConversionConfig) -> None:
    """Warn (TfqWarning) that a file for which `is_ready_for` is true is not quantized again."""
    fixed = f", and an open batch gets the size {config.batch_size}" if needs_fixed_shapes(config) else ""
    warn(
        f"model: the file is {config.scheme} already, so it is not quantized again. Only ops that "
        f"conversion.target={config.target} computes wrongly are replaced, with the same results on XNNPACK{fixed}"
    )


def warn_of_target(content: bytes, config: ConversionConfig) -> None:
    """Warn (TfqWarning) about the ops and tensors of the flatbuffer `content` that config.target cannot run."""
    if not config.target:
        return
    deprecated = registry.get(auditing.Target, config.target, field="conversion.target").deprecated
    if deprecated:
        warn(f"conversion.target={config.target}: {deprecated}")
    requirement = AuditConfig(
        require=config.target,
        inference_input_type=config.inference_input_type,
        inference_output_type=config.inference_output_type,
    )
    failures = auditing.audit_model(content, requirement).failures
    for finding in failures[:_MAX_WARNINGS]:
        warn(f"{config.target}: {finding.message}")
    if len(failures) > _MAX_WARNINGS:
        more = len(failures) - _MAX_WARNINGS
        warn(
            f"{config.target}: {more} more ops or tensors cannot run on this target. Audit the file with "
            f"audit.require={config.target} to list all"
        )


def with_trained_granularity(trained: WeightGranularity, config: ConversionConfig) -> ConversionConfig:
    """Return `config` with the granularity that the weights were trained with, if that is coarser.

    Warn (TfqWarning) if dense weights were trained per channel and become per tensor, as some targets need.

    Raises:
        InputError: Weights were trained per channel, and the config asks for per-tensor weights.
    """
    if not config.per_channel and trained.per_channel:
        raise InputError(
            f"conversion.per_channel=False: {trained.per_channel} weights were quantization-aware trained per channel, "
            "and the conversion cannot change that. Train with per-tensor quantizers, or convert the model from before "
            "that training",
            field="conversion.per_channel",
            expected=True,
            got=False,
            limit="qat-scheme",
        )
    if not config.per_channel_dense and trained.dense_per_channel:
        warn(
            f"{trained.dense_per_channel} dense weights were trained per channel and become per tensor, so their "
            "rounding differs from the training. Evaluate the flatbuffer"
        )
    return dataclasses.replace(
        config,
        per_channel=config.per_channel and (trained.per_channel > 0 or trained.per_tensor == 0),
        per_channel_dense=config.per_channel_dense and trained.dense_per_tensor == 0,
    )


def ops_without_range(content: bytes) -> list[str]:
    """Return "NAME (layer)" for each float op of a flatbuffer whose only ranges are those of the training."""
    return [
        f"{op.name} ({op.keras_layer or 'no layer'})"
        for graph in tflite.read(content).subgraphs
        for op in graph.ops
        if op.name not in ("QUANTIZE", "DEQUANTIZE")
        and any(graph.tensors[index].dtype == "float32" for index in op.outputs)
    ]


def warn_of_floats(content: bytes, config: ConversionConfig, *, has_data: bool) -> None:
    """Warn (TfqWarning) about ops, inputs and outputs of `content` that stay float although the config does not say so.

    Args:
        content: An integer flatbuffer.
        config: The config of the conversion, with its float_layers and the types of inputs and outputs.
        has_data: Whether a representative dataset or a file of ranges was provided.
    """
    if not config.needs_ranges:
        return
    ops, inputs_and_outputs = _unexpected_floats(content, config)
    if not ops and not inputs_and_outputs:
        return
    parts = [f"{listed(ops)} stay float" if ops else "", *inputs_and_outputs]
    if has_data:
        advice = "Replace these layers, or list them in conversion.float_layers if they may stay float"
    else:
        advice = "Quantization-aware training gave them no range. Pass a representative_dataset as well"
    warn(f"{config.scheme}: {'; '.join(filter(None, parts))}. {advice}")


def _unexpected_floats(content: bytes, config: ConversionConfig) -> tuple[list[str], list[str]]:
    """Return the float ops ("NAME (layer)") and float inputs and outputs (sentences) that config does not ask for.

    Left out are ops that a warning about config.target names, and CASTs of integers.
    """
    requirement = AuditConfig().for_conversion(dataclasses.replace(config, target=""))
    parsed = tflite.read(content)
    warned = set()
    if config.target:
        of_target = AuditConfig().for_conversion(config)
        warned = {(item.subgraph, item.op_index) for item in auditing.audit_model(content, of_target).failures}
    ops, inputs_and_outputs = [], []
    for finding in auditing.audit_model(content, requirement).failures:
        if finding.subgraph is None:
            continue
        graph = parsed.subgraphs[finding.subgraph]
        if finding.kind == "io_type":
            inputs_and_outputs += _types_of(graph, finding.tensor)
        elif finding.op_index is not None and (graph.index, finding.op_index) not in warned:
            op = graph.ops[finding.op_index]
            if _computes_in_float(graph, op) and not _only_changes_type(graph, op):
                ops.append(f"{op.name} ({graph.layer_of(op)})")
    return list(dict.fromkeys(ops)), list(dict.fromkeys(inputs_and_outputs))


def _types_of(graph: tflite.Subgraph, name: str | None) -> list[str]:
    """Return a sentence for each input or output of this name: "output 'logits' is float32"."""
    named = [("input", tensor) for tensor in graph.input_tensors] + [("output", item) for item in graph.output_tensors]
    return [f"{place} {name!r} is {tensor.dtype}" for place, tensor in named if shown(tensor.name) == name]


def _computes_in_float(graph: tflite.Subgraph, op: tflite.Op) -> bool:
    """Check whether `op` reads or outputs floats, except ops that `warn_of_float_indices` names."""
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        return False
    floats = [index for index in op.tensors if graph.tensors[index].dtype == "float32"]
    if all(graph.tensors[index].is_constant for index in floats):
        return False
    return any(index in op.outputs for index in floats) or index_tensors(graph).isdisjoint(op.outputs)


def _only_changes_type(graph: tflite.Subgraph, op: tflite.Op) -> bool:
    """Check whether `op` is a CAST of integers that only QUANTIZE ops read, so nothing is computed in float.

    No quantizer has an int8 form of it. The usual case is a padding mask: `(1 - cast(keep)) * -1e9`.
    """
    if op.name != "CAST" or graph.tensors[op.inputs[0]].dtype not in INDEX_TYPES:
        return False
    readers = [other for other in graph.ops if op.outputs[0] in other.inputs]
    return op.outputs[0] not in graph.outputs and all(reader.name == "QUANTIZE" for reader in readers)
