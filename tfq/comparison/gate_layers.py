# SPDX-License-Identifier: Apache-2.0
"""Find the layer at which a new flatbuffer loses accuracy that the baseline's flatbuffer has."""

import math
from typing import Any

from tfq import analysis
from tfq.analysis import OpError
from tfq.config import AnalysisConfig
from tfq.data import AnySplit

NUM_SAMPLES = 32
# Losses below this many dB are noise of rounding. Infinite SQNRs count as the highest.
_SMALLEST_LOSS_DB, _HIGHEST_DB = 1.0, 120.0


def layer_errors(new: bytes, old: bytes, floating: bytes, data: AnySplit) -> tuple[dict[str, Any], ...]:
    """Return the layers whose output has a lower SQNR in the new file, against the float file.

    An error is passed on to the layers after it. The entry with `first` true is the first layer, in the order of the
    ops, that loses at least half as much as the layer that loses most.

    Args:
        new: The new quantized flatbuffer.
        old: The flatbuffer of the baseline.
        floating: The float flatbuffer that both were converted from.
        data: Examples; the first 32 are used.

    Returns:
        For each such layer its `label` ("conv2/CONV_2D"), `old_sqnr_db`, `new_sqnr_db` (at most 120) and `first`.

    Raises:
        InputError: A file is not quantized, or the files do not belong together.
    """
    config = AnalysisConfig(limit=NUM_SAMPLES)
    before, after = (
        {_key(item): item for item in analysis.analyze(file, floating, data, config).ops} for file in (old, new)
    )
    losses = {
        label: (_sqnr(before[label]), _sqnr(item))
        for label, item in after.items()
        if label in before and not item.dead and not item.never_selected
    }
    losses = {label: pair for label, pair in losses.items() if pair[0] - pair[1] >= _SMALLEST_LOSS_DB}
    largest = max((old_db - new_db for old_db, new_db in losses.values()), default=0.0)
    first = next((label for label, (old_db, new_db) in losses.items() if old_db - new_db >= largest / 2), None)
    return tuple(
        {"label": label, "old_sqnr_db": old_db, "new_sqnr_db": new_db, "first": label == first}
        for label, (old_db, new_db) in losses.items()
    )


def _key(item: OpError) -> str:
    """Return the layer and the op, without the position of the op, which differs between files."""
    return f"{item.layer}/{item.op}"


def _sqnr(item: OpError) -> float:
    return min(_HIGHEST_DB, max(-_HIGHEST_DB, item.sqnr_db if not math.isnan(item.sqnr_db) else -_HIGHEST_DB))
