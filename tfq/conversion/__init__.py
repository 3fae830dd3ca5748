# SPDX-License-Identifier: Apache-2.0
"""Model -> float bytes -> int8 bytes."""

from tfq.conversion.convert import convert_model, input_specs
from tfq.conversion.tracing import Trace, input_structure, trace

__all__ = ["Trace", "convert_model", "input_specs", "input_structure", "trace"]
