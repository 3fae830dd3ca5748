# SPDX-License-Identifier: Apache-2.0
"""Convert Keras models and float flatbuffers: trace, freeze, rewrite, calibrate, quantize, verify.

`convert.py` has the entry points. The docstring of `quantize.py` lists all passes in their order, and says where a new
rewrite belongs.
"""

from tfq.conversion.convert import convert_model, convert_with_record
from tfq.conversion.quantize import Conversion
from tfq.conversion.recurrent_layers import recurrent_record, recurrent_text
from tfq.conversion.targeting import is_ready_for, ops_without_range
from tfq.conversion.tracing import Trace, inference_function, trace, trace_for

__all__ = [
    "Conversion",
    "Trace",
    "convert_model",
    "convert_with_record",
    "inference_function",
    "is_ready_for",
    "ops_without_range",
    "recurrent_record",
    "recurrent_text",
    "trace",
    "trace_for",
]
