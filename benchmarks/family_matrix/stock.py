# SPDX-License-Identifier: Apache-2.0
"""Results of tfmot's own quantize_model, without tfq, for the model of a family in either Keras."""

from typing import Any

import numpy as np

from family_matrix import zoo
from tfq.compression._tfmot import tfmot_symbols
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, import_tfmot

# Fraction of the output range: far above float32 rounding, far below any other function.
SAME = 1e-6

_EXAMPLES = 16


def stock(name: str, kind: str, size: int) -> dict[str, Any]:
    """Return {"result": "right", "wrong function" or "error", and the evidence}, measured with random weights.

    kind: "tf_keras" (Keras 2's own model of that name) or "keras" (Keras 3's). "right": with fake quantization as
    identity, the quantized model computes what the model does. Call it in a fresh process, because tfmot counts the
    layers' names.
    """
    tfmot = import_tfmot()
    keras = import_tf_keras() if kind == "tf_keras" else import_keras()
    with deterministic(zoo.SEED):
        model = zoo.build(keras, name, size)
    try:
        quantized = tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # any exception is the result
        return {"result": "error", "error": type(error).__name__, "message": first_line(error)}
    return compared(model, quantized, zoo.size_of(name, size))


def compared(model: Any, quantized: Any, size: int) -> dict[str, Any]:
    """Check whether `quantized` without rounding computes what `model` does, on random images in the family's range."""
    pixels = np.random.default_rng(zoo.SEED).uniform(-1, 1, (_EXAMPLES, size, size, 3)).astype(np.float32)
    difference = identity_difference(model, quantized, pixels)
    return {"result": "right" if difference <= SAME else "wrong function", "difference": difference}


def identity_difference(model: Any, quantized: Any, inputs: np.ndarray) -> float:
    """Return the largest output difference without rounding, as a fraction of the largest output; runs eagerly."""
    with tfmot_symbols.fake_quant_as_identity():
        expected = np.asarray(model(inputs, training=False), np.float64)
        got = np.asarray(quantized(inputs, training=False), np.float64)
    return float(np.max(np.abs(expected - got)) / np.max(np.abs(expected)))


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message, in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
