# SPDX-License-Identifier: Apache-2.0
"""A search over --data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfq import artifacts, data, stages
from tfq.config import ConversionConfig, RunConfig
from tfq.recipe.store import StageStore
from tfq.search.climb import find_int8
from tfq.search.record import SearchResult


def search_on_data(model: Any, config: RunConfig, out: Path, *, told: Callable[[str], None]) -> SearchResult:
    """What `find_int8` finds of `model` (Keras, or float flatbuffer bytes) on the splits of config.data.

    out: its `.stages` keeps every rung. told: is given a line after each rung.
    """
    from tfq.conversion import convert_model

    floating = stages.trace_once(model, config)
    if not isinstance(floating, bytes):
        plain = ConversionConfig(scheme="float32", batch_size=config.conversion.batch_size)
        floating = convert_model(floating, None, plain, preprocessing=data.preprocessing_record(config.data))
    train, validation, test = (stages.load_split(config.data, split) for split in ("train", "val", "test"))
    with artifacts.locked(out / ".lock"):
        store = StageStore(out)
        return find_int8(
            floating, train, validation, test, config.search, conversion=config.conversion, store=store, told=told
        )
