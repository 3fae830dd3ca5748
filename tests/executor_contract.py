# SPDX-License-Identifier: Apache-2.0
"""What every executor does, as functions that tests call with an open executor of two workers."""

import executor_tasks
import pytest
from executor_tasks import digest, expected_digest
from messages import warned

from tfq.executors import Task
from tfq.store import StageStore


def store_in(folder):
    folder.mkdir(exist_ok=True)
    return StageStore(folder)


def named(name, function, *, inputs=None, needs=None, **arguments):
    function = f"executor_tasks:{function}"
    return Task(name=name, function=function, arguments=arguments, inputs=inputs or {}, needs=needs or {})


def one_result(executor, task, store):
    """Return the content of the file `digest` that a task wrote."""
    (ended,) = executor.run([task], store)
    assert ended.failure is None, ended.failure
    return (ended.result.directory / "digest").read_bytes()


def results_do_not_depend_on_the_executor(executor, tmp_path):
    first, second = digest(seed=1), digest(seed=2)
    third = digest(seed=3, needs={"a": first, "b": second})
    ended = list(executor.run([third, digest(seed=1)], store_in(tmp_path)))
    assert [each.failure for each in ended] == [None] * 3
    # Those that are needed come before, and each key once.
    assert sorted(each.task.name for each in ended[:2]) == ["digest 1", "digest 2"]
    assert [each.task.name for each in ended[2:]] == ["digest 3"]
    needs = {"a": expected_digest(1), "b": expected_digest(2)}
    assert (ended[2].result.directory / "digest").read_bytes() == expected_digest(3, needs)
    assert {each.result.resumed for each in ended} == {False}
    assert ended[0].result.details["intra"] == ended[0].result.details["omp"] == "1"


def stored_results_are_not_computed_again(executor, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    tasks = [named(name, "count_calls", inputs={"n": name}, folder=str(calls), label=name) for name in "abc"]
    store = store_in(tmp_path / "out")
    list(executor.run(tasks[:2], store))
    ended = list(executor.run([*tasks, *tasks], store_in(tmp_path / "out")))
    assert sorted(path.name[0] for path in calls.iterdir()) == ["a", "b", "c"]
    assert [(each.task.name, each.result.resumed) for each in ended] == [("a", True), ("b", True), ("c", False)]


def a_failure_costs_only_what_needs_it(executor, tmp_path):
    bad = named("bad", "refuse", message="no such layer")
    bug = named("bug", "divide")
    tasks = [digest(seed=5, needs={"bad": bad}), bug, digest(seed=6)]
    ended = {each.task.name: each for each in executor.run(tasks, store_in(tmp_path))}
    assert (ended["bad"].failure.kind, ended["bad"].failure.exit_code) == ("error", 2)
    assert ended["bad"].failure.message == "no such layer"
    assert ended["digest 5"].failure.kind == "needs" and "no such layer" in ended["digest 5"].failure.message
    assert ended["bug"].failure.kind == "bug" and "divide" in ended["bug"].failure.details
    assert ended["digest 6"].failure is None
    # Nothing remains of a failed task, so that it runs again.
    assert len(list((tmp_path / ".stages").iterdir())) == 1


def a_killed_process_costs_only_its_task(executor, tmp_path):
    for name in ("once", "always"):
        (tmp_path / name).mkdir()
    once = named("once", "kill_itself", inputs={"n": 1}, flag=str(tmp_path / "once"), times=1)
    always = named("always", "kill_itself", inputs={"n": 2}, flag=str(tmp_path / "always"), times=9)
    with warned("again"):
        ended = {each.task.name: each for each in executor.run([once, always, digest(seed=7)], store_in(tmp_path))}
    assert ended["once"].failure is None
    assert ended["always"].failure.kind == "killed"
    assert len(list((tmp_path / "always").iterdir())) == 3
    assert ended["digest 7"].failure is None


def warnings_reach_the_driver(executor, tmp_path):
    task = named("warns", "warn_twice")
    for _ in range(2):
        with warned("skipped"):
            (ended,) = executor.run([task], store_in(tmp_path))
        assert ended.result.warnings == ("two layers were skipped",)


CONTRACT = [
    results_do_not_depend_on_the_executor,
    stored_results_are_not_computed_again,
    a_failure_costs_only_what_needs_it,
    a_killed_process_costs_only_its_task,
    warnings_reach_the_driver,
]
each_rule = pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
__all__ = ["CONTRACT", "each_rule", "executor_tasks", "one_result"]
