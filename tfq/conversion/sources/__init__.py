# SPDX-License-Identifier: Apache-2.0
"""The sources of a conversion: what kinds of models there are, and what is known about their inputs."""

from tfq.conversion.sources.flatbuffer import with_fixed_batch, with_fixed_sizes
from tfq.conversion.sources.inputs import ExampleShapes, FixedInput, SourceInput, check_written, fixed_inputs
from tfq.conversion.sources.source import Source, source_of

__all__ = [
    "ExampleShapes",
    "FixedInput",
    "Source",
    "SourceInput",
    "check_written",
    "fixed_inputs",
    "source_of",
    "with_fixed_batch",
    "with_fixed_sizes",
]
