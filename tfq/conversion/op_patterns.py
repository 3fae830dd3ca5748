# SPDX-License-Identifier: Apache-2.0
"""Resolve patterns that address an op by its number, `op:12`, to the names of the op's output tensors.

Numbers refer to the float flatbuffer before tfq rewrites it. Names survive the rewrites and the quantizer. The metadata
of the result maps the numbers to the names, because the ops have other numbers there and an audit must find them.
"""

import dataclasses
from collections.abc import Sequence

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError
from tfq.patterns import included, like, op_address, parse_address

_FIELDS = ("float_layers", "int16_layers", "per_tensor_layers", "int4_layers")


def with_ops_by_name(model: bytes, config: ConversionConfig) -> tuple[bytes, ConversionConfig]:
    """Replace op numbers in the patterns of `config` by names, and record the names in the metadata of `model`.

    Args:
        model: The float flatbuffer.
        config: Patterns of the form `op:12` (`op:1:12` in subgraph 1) are replaced; others stay.

    Returns:
        The flatbuffer and the config.

    Raises:
        InputError: The model has no op of that number.
    """
    resolved: dict[str, list[str]] = {}

    def named(patterns: Sequence[str], field: str) -> tuple[str, ...]:
        results: list[str] = []
        for pattern in patterns:
            if parse_address(pattern) is None:
                results.append(pattern)
            else:
                address = included(pattern)
                resolved[address] = _outputs(parsed, address, f"conversion.{field}")
                results += [like(pattern, name) for name in resolved[address]]
        return tuple(results)

    settings = {field: getattr(config, field) for field in _FIELDS}
    methods = [text.rpartition("=") for text in config.calibration.tensors]
    if not any(map(parse_address, [*sum(settings.values(), ()), *(method[0].strip() for method in methods)])):
        return model, config
    parsed = tflite.read(model)
    tensors = (
        f"{name}={method}" for pattern, _, method in methods for name in named([pattern.strip()], "calibration.tensors")
    )
    config = dataclasses.replace(
        config,
        float_layers=named(config.float_layers, "float_layers"),
        int16_layers=named(config.int16_layers, "int16_layers"),
        per_tensor_layers=named(config.per_tensor_layers, "per_tensor_layers"),
        int4_layers=named(config.int4_layers, "int4_layers"),
        calibration=dataclasses.replace(config.calibration, tensors=tuple(tensors)),
    )
    metadata = {**(tflite.read_metadata(model) or {}), tflite.ADDRESSED_OPS: resolved}
    return tflite.write_metadata(model, metadata), config


def _outputs(model: tflite.Model, pattern: str, field: str) -> list[str]:
    subgraph, number = parse_address(pattern) or (0, 0)
    ops = model.subgraphs[subgraph].ops if subgraph < len(model.subgraphs) else ()
    if number >= len(ops):
        last = op_address(subgraph, len(ops) - 1)
        advice = f"Its last op is {last}" if ops else f"Subgraph {subgraph} has no ops"
        raise InputError(
            f"{field}: the model has no op {pattern}. {advice}; the numbers are those of the float .tflite",
            field=field,
            expected=len(ops),
            got=pattern,
        )
    return [model.subgraphs[subgraph].tensors[index].name for index in ops[number].outputs]
