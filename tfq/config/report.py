# SPDX-License-Identifier: Apache-2.0
"""Settings of the pages that are made from records."""

from dataclasses import dataclass

from tfq.config.base import Config, setting


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Settings of `tfq report`: which records to make pages of."""

    folder: str = setting("", "directory with records that tfq wrote, or one of these JSON files", path_of="records")
