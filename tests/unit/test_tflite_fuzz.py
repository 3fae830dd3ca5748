# SPDX-License-Identifier: Apache-2.0
"""A thousand seeded mutations of correct files: each gives a report or a FlatbufferError without delay."""

import time
import tracemalloc

import pytest
from flatbuffer_mutations import mutants
from golden_models import golden

from tfq import registry
from tfq.auditing import audit_model
from tfq.config import AUDIT_SCHEMES, AuditConfig
from tfq.errors import FlatbufferError

MUTATIONS = 200
MOST_SECONDS = 0.5
FILES = ("digits_int8", "digits_dynamic_range", "digits_weight_only_int8", "two_branches_float32", "flex_op")
REQUIREMENTS = ("", *AUDIT_SCHEMES, *registry.names("target"))


def audited(content, requirement):
    """Return "report" or "error", and the CPU seconds of this thread that an audit took."""
    start = time.thread_time()
    try:
        report = audit_model(content, AuditConfig(require=requirement))
        report.to_dict(), report.to_text()
        outcome = "report"
    except FlatbufferError as error:
        assert ": " in str(error)
        outcome = "error"
    return outcome, time.thread_time() - start


@pytest.mark.parametrize("name", FILES)
def test_mutated_file_gives_a_report_or_a_flatbuffer_error_at_once(name):
    outcomes = {"report": 0, "error": 0}
    slowest = peak = 0.0
    for number, mutant in enumerate(mutants(golden(name), MUTATIONS, name)):
        requirement = REQUIREMENTS[number % len(REQUIREMENTS)]
        # Tracing memory is slow; one in eight is enough.
        if number % 8 == 0:
            tracemalloc.start()
        outcome, seconds = audited(mutant, requirement)
        outcomes[outcome] += 1
        if tracemalloc.is_tracing():
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # Imports and the garbage of other tests take time only once.
        slowest = max(slowest, seconds if seconds < MOST_SECONDS else audited(mutant, requirement)[1])
    assert slowest < MOST_SECONDS
    assert peak < 30e6
    # Both must occur, otherwise the fuzz test checks nothing.
    assert min(outcomes.values()) > MUTATIONS // 20
