# SPDX-License-Identifier: Apache-2.0
"""The executor `local` and the order of tasks."""

import pytest
from executor_contract import each_rule

from tfq.executors import open_executor


@pytest.fixture(scope="module")
def local():
    with open_executor("local", num_workers=2) as executor:
        yield executor


@each_rule
def test_local_workers(rule, local, tmp_path):
    rule(local, tmp_path)
