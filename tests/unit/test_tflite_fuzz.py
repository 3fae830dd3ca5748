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
FILES = ("digits_int8", "digits_dynamic_range", "digits_weight_only_int8", "two_branches_float32", "flex_op")
REQUIREMENTS = ("", *AUDIT_SCHEMES, *registry.names("target"))


@pytest.mark.parametrize("name", FILES)
def test_mutated_file_gives_a_report_or_a_flatbuffer_error_at_once(name):
    outcomes = {"report": 0, "error": 0}
    slowest = peak = 0.0
    for number, mutant in enumerate(mutants(golden(name), MUTATIONS, name)):
        # Tracing memory is slow; one in eight is enough.
        if number % 8 == 0:
            tracemalloc.start()
        start = time.process_time()
        try:
            report = audit_model(mutant, AuditConfig(require=REQUIREMENTS[number % len(REQUIREMENTS)]))
            report.to_dict(), report.to_text()
            outcomes["report"] += 1
        except FlatbufferError as error:
            assert ": " in str(error)
            outcomes["error"] += 1
        slowest = max(slowest, time.process_time() - start)
        if tracemalloc.is_tracing():
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert slowest < 0.5
    assert peak < 30e6
    # Both must occur, otherwise the fuzz test checks nothing.
    assert min(outcomes.values()) > MUTATIONS // 20
