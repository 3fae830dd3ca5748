# SPDX-License-Identifier: Apache-2.0
"""The executor `ray`."""

import pytest
from executor_contract import each_rule

from tfq.executors import open_executor

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def cluster():
    with open_executor("ray", num_workers=2) as executor:
        yield executor


@each_rule
def test_ray_workers(rule, cluster, tmp_path):
    rule(cluster, tmp_path)
