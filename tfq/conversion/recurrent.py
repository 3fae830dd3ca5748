# SPDX-License-Identifier: Apache-2.0
"""Fused recurrent ops: which have an int8 form, which stay float, and which cannot be converted."""

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, warn

# UNIDIRECTIONAL_SEQUENCE_LSTM and SVDF have int8 kernels, and TensorFlow's quantizer supports them. It turns the others
# into ops that no kernel runs (an RNN that reads int8 while its kernel expects float32), or it cannot read them at all.
_FLOAT_ONLY = frozenset(
    {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"}
)
_RECURRENT = _FLOAT_ONLY | {"UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"}


def float_recurrent_ops(model: bytes) -> list[int]:
    """Return the indices of the recurrent ops without an int8 form, in the main subgraph of the float `model`."""
    return [op.index for op in tflite.read(model).main_subgraph.ops if op.name in _FLOAT_ONLY]


def check_recurrent_ops(model: bytes, config: ConversionConfig) -> None:
    """Raise InputError if `config` cannot quantize a recurrent op; warn (TfqWarning) about those that stay float.

    There is also a warning for SVDF, because it is a streaming op that is calibrated on single samples.
    """
    graph = tflite.read(model).main_subgraph
    ops = [op for op in graph.ops if op.name in _RECURRENT]
    if not ops:
        return
    shown = {op.index: f"{op.name} ({graph.layer_of(op)})" for op in ops}
    if config.scheme == "int16x8" and config.quantizer == "tensorflow":
        raise InputError(
            f"conversion.scheme=int16x8: TensorFlow's quantizer has no 16-bit form of {', '.join(shown.values())}. "
            "Convert to int8, or set conversion.quantizer=litert, which keeps these ops in float",
            field="conversion.scheme",
            expected="int8",
            got="int16x8",
        )
    floats = [op for op in ops if op.name in _FLOAT_ONLY or config.quantizer == "litert"]
    if floats:
        reason = "litert-quantizer has no int8 form" if config.quantizer == "litert" else "there is no int8 kernel"
        warn(f"recurrent ops stay float: {', '.join(shown[op.index] for op in floats)}, because {reason} of them")
    frames = [shown[op.index] for op in ops if op.name == "SVDF" and op not in floats]
    if frames:
        warn(
            f"calibration: the range of {', '.join(frames)} may be too small. In a stream its state continues from "
            "frame to frame, but calibration resets it before each sample. Use ranges that were observed on a stream "
            "(conversion.calibration.ranges)"
        )
