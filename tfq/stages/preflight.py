# SPDX-License-Identifier: Apache-2.0
"""Before any work: what each layer of a model can take, and what stays float in its flatbuffer."""

import dataclasses
import warnings
from typing import Any

import numpy as np

from tfq import flatbuffer
from tfq.config import AuditConfig, ConversionConfig, RunConfig
from tfq.errors import InputError, TfqError

# Random examples by which the flatbuffer gets ranges: its types do not depend on them.
_EXAMPLES, _SIZE_WHERE_UNKNOWN = 2, 32


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

    rng = np.random.default_rng(0)
    inputs = {
        name: rng.uniform(0, 1, (_EXAMPLES, *(size or _SIZE_WHERE_UNKNOWN for size in tensor.shape[1:])))
        .astype(tensor.dtype.as_numpy_dtype)
        for name, tensor in zip(bridged.model.input_names, bridged.model.inputs, strict=True)
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these data are noise, we know
        content = convert_model(bridged.model, inputs, ConversionConfig())
    found: dict[str, dict[str, None]] = {}
    for finding in flatbuffer.audit_model(content, AuditConfig(require="full_int8")).failures:
        if finding.kind in ("qdq", "io_type") or finding.op is None:
            continue  # these follow from a float op, which is told itself
        layer = bridged.origins.get(finding.keras_layer, finding.keras_layer) or finding.op
        found.setdefault(layer, {})[finding.op] = None
    return {layer: tuple(ops) for layer, ops in found.items()}
