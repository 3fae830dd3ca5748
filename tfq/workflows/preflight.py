# SPDX-License-Identifier: Apache-2.0
"""Before any work: what each layer of a model can take, and what stays float in its flatbuffer."""

import dataclasses
import warnings
from typing import Any

from tfq import auditing
from tfq.config import AuditConfig, ConversionConfig, RunConfig
from tfq.errors import InputError, TfqError


def preflight(model: Any, config: RunConfig) -> Any:
    """The table of what each layer of a Keras model can take, as config.compression asks. InputError for a .tflite."""
    from tfq import compression

    if isinstance(model, bytes):
        raise InputError(f"--model={config.model}: a .tflite cannot be trained: give the Keras model")
    return compression.preflight(model, config.compression)


def preflight_with_flatbuffer(model: Any, config: RunConfig) -> Any:
    """The same, and for each layer its ops that stay float, by a conversion of the model as it is on random data.

    Where the bridge or the converter refuses the model, a row or a note tells it.
    """
    from tfq.keras_bridge import to_tf_keras

    try:
        bridged = to_tf_keras(model)
    except TfqError:
        return preflight(model, config)
    table = preflight(bridged, config)
    try:
        floating = _float_ops(bridged)
    except TfqError as error:
        told = f"conversion was tried and failed: {str(error).splitlines()[0]}"
        return dataclasses.replace(table, notes=(*table.notes, told))
    return table.with_float_ops(floating)


def _float_ops(bridged: Any) -> dict[str, tuple[str, ...]]:
    """User's layer -> its ops that conversion to int8 leaves in float; an op without a layer is under its own name."""
    from tfq.conversion import convert_model
    from tfq.keras_bridge.verification import random_inputs

    # Random: an op's type does not depend on its range.
    inputs = dict(zip(bridged.model.input_names, random_inputs(bridged.model)[0], strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these data are noise, we know
        content = convert_model(bridged.model, inputs, ConversionConfig())
    found: dict[str, dict[str, None]] = {}
    for finding in auditing.audit_model(content, AuditConfig(require="full_int8")).failures:
        if finding.kind in ("qdq", "io_type") or finding.op is None:
            continue  # these follow from a float op, which is told itself
        layer = bridged.origins.get(finding.keras_layer, finding.keras_layer) or finding.op
        found.setdefault(layer, {})[finding.op] = None
    return {layer: tuple(ops) for layer, ops in found.items()}
