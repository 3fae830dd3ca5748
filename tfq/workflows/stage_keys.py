# SPDX-License-Identifier: Apache-2.0
"""The settings that determine the result of a stage of a run or a sweep, as values for its key."""

import dataclasses
from typing import Any

from tfq import artifacts
from tfq.config import DataConfig, EvaluationConfig
from tfq.config.base import Config


def settings_for_key(config: Config) -> dict[str, Any]:
    """Return the settings of a section as JSON values that contain no path: a file is replaced by its SHA-256.

    Left out are the address of a data source, because its fingerprint stands next to these values, and what an
    evaluation requires, because it does not change the result.
    """
    values = config.to_dict()
    if isinstance(config, DataConfig):
        return {**values, "source": config.source.partition(":")[0]}
    if isinstance(config, EvaluationConfig):
        del values["require"]
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if item.name not in values:
            continue
        if isinstance(value, Config):
            values[item.name] = settings_for_key(value)
        elif item.metadata.get("path_of") and value:
            paths = [value] if isinstance(value, str) else list(value)
            values[item.name] = [artifacts.sha256_path(path) for path in paths]
    return values
