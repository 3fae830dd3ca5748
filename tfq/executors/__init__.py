# SPDX-License-Identifier: Apache-2.0
"""Run stages of the store as tasks in other processes: on this machine, or on the nodes of a Ray cluster."""

import tfq.executors.local
import tfq.executors.ray_cluster  # noqa: F401  both register their executor
from tfq.executors.call import environment, request_of
from tfq.executors.distribution import Distribution, current_distribution, distributed
from tfq.executors.executor import Executor, ExecutorKind, Killed, Pool, open_executor, outcome, run_tasks
from tfq.executors.task import Task, TaskFailure, TaskResult

__all__ = [
    "Distribution",
    "Executor",
    "ExecutorKind",
    "Killed",
    "Pool",
    "Task",
    "TaskFailure",
    "TaskResult",
    "current_distribution",
    "distributed",
    "environment",
    "open_executor",
    "outcome",
    "request_of",
    "run_tasks",
]
