# SPDX-License-Identifier: Apache-2.0
"""Search the cheapest int8 conversion within a budget, and measure accuracy by bit width; both without training."""

from tfq.evaluation.paired import PairedDifference, paired_difference
from tfq.search.assignment import LevelEffect, LevelTable
from tfq.search.bit_widths import BitWidthResult, BitWidthsResult, accuracy_by_bit_widths
from tfq.search.record import Candidate, CandidateResult, ParetoPoint, SearchResult
from tfq.search.search import find_int8

__all__ = [
    "BitWidthResult",
    "BitWidthsResult",
    "Candidate",
    "CandidateResult",
    "LevelEffect",
    "LevelTable",
    "PairedDifference",
    "ParetoPoint",
    "SearchResult",
    "accuracy_by_bit_widths",
    "find_int8",
    "paired_difference",
]
