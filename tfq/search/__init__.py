# SPDX-License-Identifier: Apache-2.0
"""Without training: the cheapest way to an int8 model that keeps a budget, and accuracy against bits. No numerics."""

from tfq.evaluation.paired import PairedDifference, paired_difference
from tfq.search.bit_widths import BitWidthResult, BitWidthsResult, accuracy_by_bit_widths
from tfq.search.record import Candidate, CandidateResult, SearchResult
from tfq.search.search import find_int8

__all__ = [
    "BitWidthResult",
    "BitWidthsResult",
    "Candidate",
    "CandidateResult",
    "PairedDifference",
    "SearchResult",
    "accuracy_by_bit_widths",
    "find_int8",
    "paired_difference",
]
