# SPDX-License-Identifier: Apache-2.0
"""What to find out about an int8 flatbuffer."""

from dataclasses import dataclass

from tfq.settings import Config, setting


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(Config):
    """Why an int8 flatbuffer computes something else than its float one."""

    reference: str = setting("", "float .tflite that --model was made of")
    limit: int = setting(64, "examples to compare on", minimum=1)
    sensitivity: bool = setting(False, "measure as well what each layer, quantized alone, does to the outputs")
