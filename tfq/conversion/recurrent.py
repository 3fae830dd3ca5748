# SPDX-License-Identifier: Apache-2.0
"""Fused recurrent ops: which of them have an int8 form, stay float, or are refused."""

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, warn

# UNIDIRECTIONAL_SEQUENCE_LSTM and SVDF have int8 kernels, and TensorFlow's quantizer knows them. It turns the others
# into ops that no kernel runs (an RNN that reads int8 where its kernel takes float32), or it cannot read them at all.
_FLOAT_ONLY = frozenset(
    {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"}
)
_RECURRENT = _FLOAT_ONLY | {"UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"}


def float_recurrent_ops(model: bytes) -> list[int]:
    """Return the indices of the recurrent ops without an int8 form, in the main subgraph of the float `model`."""
    return [op.index for op in tflite.read(model).main_subgraph.ops if op.name in _FLOAT_ONLY]


def check_recurrent_ops(model: bytes, config: ConversionConfig) -> None:
    """Raise InputError on recurrent ops that `config` cannot quantize; warn (TfqWarning) of those that stay float.

    SVDF is a streaming op, so its calibration on single samples is a warning as well.
    """
    graph = tflite.read(model).main_subgraph
    ops = [op for op in graph.ops if op.name in _RECURRENT]
    if not ops:
        return
    shown = {op.index: f"{op.name} ({graph.layer_of(op)})" for op in ops}
    if config.scheme == "int16x8" and config.quantizer == "tensorflow":
        raise InputError(
            f"int16x8: {', '.join(shown.values())}: TensorFlow's quantizer has no 16-bit form of it: convert to int8, "
            "or set quantizer=litert, which leaves it float",
            field="conversion.scheme",
            expected="int8",
            got="int16x8",
        )
    floats = [op for op in ops if op.name in _FLOAT_ONLY or config.quantizer == "litert"]
    if floats:
        why = "litert-quantizer has no int8 form of it" if config.quantizer == "litert" else "it has no int8 kernel"
        warn(f"{', '.join(shown[op.index] for op in floats)} stays float: {why}")
    frames = [shown[op.index] for op in ops if op.name == "SVDF" and op not in floats]
    if frames:
        warn(
            f"{', '.join(frames)}: its state continues from frame to frame in a stream, and calibration resets it "
            "before each sample: the range of its output may be too small. Use ranges that were observed on a stream "
            "(conversion.calibration.ranges)"
        )
