# SPDX-License-Identifier: Apache-2.0
"""Settings of the comparison of two files: two .tflite files, or two records."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting
from tfq.config.gate import GateConfig


@dataclass(frozen=True, kw_only=True)
class ComparisonRequireConfig(Config):
    """Requirements on a comparison; the command exits with code 1 if one is not met."""

    no_differences: bool = setting(False, "require that nothing differs, except the size and the layout of the files")
    min_weight_sqnr_db: float | None = setting(
        None,
        "lowest signal-to-quantization-noise ratio (SQNR) of the weights of any op against the reference's, in dB",
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(GateConfig):
    """Settings of the comparison of two files, or of a record with a baseline."""

    reference: str = setting("", ".tflite file or record to compare with: the first argument, A", path_of="comparable")
    limit: int = setting(256, "number of examples whose outputs are compared, if there is data", minimum=1)
    require: ComparisonRequireConfig = section(ComparisonRequireConfig, "requirements that must be met")
