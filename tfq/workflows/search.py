# SPDX-License-Identifier: Apache-2.0
"""A search, or accuracy by bit width, over config.data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfq import artifacts, data, workflows
from tfq.config import ConversionConfig, RunConfig
from tfq.search.bit_widths import BitWidthsResult, accuracy_by_bit_widths
from tfq.search.record import SearchResult
from tfq.search.search import find_int8
from tfq.store import StageStore
from tfq.workflows.training import data_notes, with_warnings


def search_on_data(model: Any, config: RunConfig, out: Path, *, told: Callable[[str], None]) -> SearchResult:
    """What `find_int8` finds of `model` (Keras, or float flatbuffer bytes) on the splits of config.data.

    out: its `.stages` keeps every candidate. told: is given a line after each candidate.
    """
    floating = _floating(model, config)
    train, validation, test = (workflows.load_split(config.data, split) for split in ("train", "val", "test"))
    for note in data_notes(train, validation, test):
        told(note)
    with artifacts.locked(out / ".lock"):
        store = StageStore(out)
        return find_int8(
            floating, train, validation, test, config.search, conversion=config.conversion, store=store, progress=told
        )


def bit_widths_on_data(model: Any, config: RunConfig, out: Path, *, told: Callable[[str], None]) -> BitWidthsResult:
    """What `accuracy_by_bit_widths` finds of `model` (Keras, or float flatbuffer bytes) on the splits of config.data.

    out: its `.stages` keeps what was measured. told: is given a line after each way.
    """
    floating = _floating(model, config)
    widths = config.analysis.bit_widths
    train = with_warnings(data.load_calibration_split(config.data, limit=widths.num_calibration_samples))
    test = workflows.load_split(config.data, "test", limit=widths.limit)
    with artifacts.locked(out / ".lock"):
        return accuracy_by_bit_widths(floating, train, test, widths, store=StageStore(out), told=told)


def _floating(model: Any, config: RunConfig) -> bytes:
    """The float flatbuffer of a Keras model; bytes as they are."""
    from tfq.conversion import convert_model

    floating = workflows.trace_once(model, config)
    if not isinstance(floating, bytes):
        plain = ConversionConfig(scheme="float32", batch_size=config.conversion.batch_size)
        floating = convert_model(floating, None, plain, preprocessing=data.preprocessing_record(config.data))
    return floating
