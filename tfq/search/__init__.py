# SPDX-License-Identifier: Apache-2.0
"""The cheapest way to an int8 model that keeps a budget, without training. Owns no numerics."""

from tfq.search.climb import find_int8
from tfq.search.ladder import Rung
from tfq.search.paired import PairedDifference, paired_difference
from tfq.search.record import Climbed, SearchResult
from tfq.search.run import search_on_data

__all__ = ["Climbed", "PairedDifference", "Rung", "SearchResult", "find_int8", "paired_difference", "search_on_data"]
