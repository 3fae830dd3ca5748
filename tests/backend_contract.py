# SPDX-License-Identifier: Apache-2.0
"""What every backend that computes outputs must do. A test module imports these tests, and defines `subject`.

`local` computes the expected outputs, because the unit tests compare it with the interpreter.
"""

import contextlib
import dataclasses
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from built_models import Call, T, build
from golden_models import changed, golden
from messages import refused
from one_op_models import options

from tfq import progress
from tfq.backends import Backend, InputStream, RunRequest, child, make_backend, timing_backend, worker
from tfq.backends.timing import TimedModel, TimingRequest
from tfq.errors import BackendError, InputError, ModelError

HOSTILE = Path(__file__).resolve().parent / "hostile"
DIGITS = golden("digits_int8")


def limit_worker(monkeypatch: pytest.MonkeyPatch, megabytes: int = 4) -> None:
    monkeypatch.setattr(worker, "memory_limit", lambda *_, **named: megabytes << 20)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backend under test.

    Args:
        backend: The backend.
        max_lsb: How far its quantized outputs may be from those of `local`.
        runs: Folder of its runs on the board, which must be empty after a run; None if it has none.
        finish: Ends what the backend keeps between runs on purpose.
        limit_memory: Limits the memory of the interpreter, so that images of 8x8 fit and those of `too_wide` do not;
            None if the backend cannot limit it.
        too_wide: Height and width of an image.
        crash: Name of a file in tests/hostile that ends its interpreter with SIGSEGV, after `before_crash`.
        before_crash: Prepares the crash.
        process_here: (process ID that a worker reports) -> its ID on this machine.
    """

    backend: Backend
    max_lsb: int = 0
    runs: Path | None = None
    finish: Callable[[], None] = lambda: None
    limit_memory: Callable[[pytest.MonkeyPatch], None] | None = limit_worker
    too_wide: int = 1024
    crash: str = "crash_704317"
    before_crash: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None
    process_here: Callable[[int], int] = lambda pid: pid

    def assess(self, model, *inputs, **settings):
        return self.backend.assess(RunRequest(model=model, inputs=inputs, **settings))


@pytest.fixture(autouse=True)
def nothing_is_left(subject, temporary):
    """Check after each test that neither files nor processes of a run are left."""
    make_backend("local").prepare()
    before = children()
    yield
    subject.finish()
    assert list(temporary.iterdir()) == []
    # A board notices the end of a connection a moment later.
    assert soon(lambda: subject.runs is None or not subject.runs.exists() or not list(subject.runs.iterdir()))
    assert soon(lambda: not children() - before)


def soon(condition: Callable[[], object], secs: float = 20.0) -> bool:
    """Return whether the condition becomes true within some seconds. It may become false again right after."""
    deadline = time.monotonic() + secs
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(result)


def children() -> set[int]:
    """Return the processes that this one has started."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def digits(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(-128, 128, (count, 8, 8, 1)).astype(np.int8)


def local(model, *inputs):
    return make_backend("local").assess(RunRequest(model=model, inputs=inputs)).outputs


def assert_close(outputs, expected, max_lsb):
    assert [(array.shape, array.dtype) for array in outputs] == [(array.shape, array.dtype) for array in expected]
    for array, other in zip(outputs, expected, strict=True):
        if max_lsb:
            np.testing.assert_allclose(array.astype(np.float64), other.astype(np.float64), atol=max_lsb)
        else:
            np.testing.assert_array_equal(array, other)


def test_contract_streams_have_the_outputs_of_local(subject):
    inputs = digits(203)
    pieces = np.split(inputs, [1, 70, 71, 200])
    stream = InputStream(num_examples=203, pieces=lambda: iter([(piece,) for piece in pieces]))
    result = subject.backend.assess(RunRequest(model=DIGITS, inputs=stream, num_workers=2))
    assert_close(result.outputs, local(DIGITS, inputs), subject.max_lsb)
    assert len(np.unique(result.outputs[0])) > 10  # a backend that computes nothing would also agree with itself
    assert result.how == subject.backend.kind.how and result.total_ops == 9
    assert result.machine["machine"] and os.uname().nodename not in str(result.machine)


def activations(model):
    """Return the tensors of a model in object form that are not constants. Not every runtime infers their shapes."""
    return [tensor for tensor in model.subgraphs[0].tensors if model.buffers[tensor.buffer].data is None]


def two_inputs_and_outputs() -> bytes:
    tensors = {name: T("float32", (1, 4)) for name in ("a", "b", "sum", "largest")}
    ops = [Call("ADD", ["a", "b"], ["sum"]), Call("MAXIMUM", ["a", "b"], ["largest"])]
    return build(tensors, ops, ["a", "b"], ["largest", "sum"])


def test_contract_several_inputs_and_outputs_keep_their_order(subject):
    a, b = np.arange(20, dtype=np.float32).reshape(5, 4), np.full((5, 4), 7.5, np.float32)
    largest, total = subject.assess(two_inputs_and_outputs(), a, b).outputs
    np.testing.assert_array_equal(largest, np.maximum(a, b))
    np.testing.assert_array_equal(total, a + b)


def test_contract_a_batch_is_padded_and_latencies_are_measured(subject):
    def batch_of_4(model):
        for tensor in activations(model):
            tensor.shape, tensor.shapeSignature = [4, *tensor.shape[1:]], None

    dynamic = golden("digits_int8_dynamic_batch")
    result = subject.assess(changed(dynamic, batch_of_4), digits(6), num_runs=3, warmup_runs=1)
    assert_close(result.outputs, local(dynamic, digits(6)), subject.max_lsb)
    assert any("batch" in note for note in result.notes)
    if subject.backend.kind.times:
        assert result.latencies_ms.shape == (3,) and (result.latencies_ms > 0).all()
    else:
        assert result.latencies_ms is None and result.latency_reason


def test_contract_wrong_inputs_are_the_users_error(subject):
    with refused(InputError, field="inputs", word="x0"):
        subject.assess(DIGITS, np.zeros((2, 8, 9, 1), np.int8))


def test_contract_a_crash_of_the_interpreter_is_a_model_error(subject, monkeypatch):
    subject.before_crash(monkeypatch)
    model = (HOSTILE / f"{subject.crash}.tflite").read_bytes()
    inputs = [np.ones(t.shape, t.dtype) for t in worker.tflite.read(model).main_subgraph.input_tensors]
    with refused(ModelError, field="model", got="SIGSEGV"):
        subject.assess(model, *inputs)


def wide_island(size: int) -> bytes:
    """Return a model of images of this height and width."""

    def wide(model):
        for tensor in activations(model):
            if len(tensor.shape) == 4:
                tensor.shape = [1, size, size, tensor.shape[3]]

    return changed(golden("float_island"), wide)


def test_contract_a_model_that_takes_too_long_is_stopped(subject):
    with refused(ModelError, field="timeout_secs"):
        subject.assess(wide_island(2048), np.zeros((1, 2048, 2048, 1), np.int8), timeout_secs=0.2)


def test_contract_memory_beyond_the_limit_is_refused(subject, monkeypatch):
    if subject.limit_memory is None:
        return  # CI accepts no skipped test
    subject.limit_memory(monkeypatch)
    subject.assess(wide_island(8), np.zeros((1, 8, 8, 1), np.int8))
    with refused(ModelError):
        size = subject.too_wide
        subject.assess(wide_island(size), np.zeros((1, size, size, 1), np.int8))


def test_contract_progress_is_counted_in_examples(subject, monkeypatch):
    totals = []

    class Bar:
        n = 0

        def update(self, count):
            self.n += count

    @contextlib.contextmanager
    def bar(name, total, unit):
        shown = Bar()
        yield shown
        totals.append((total, shown.n))

    monkeypatch.setattr(progress, "bar", bar)
    monkeypatch.setattr(worker, "BLOCK_EXAMPLES", 1)
    slow = InputStream(num_examples=3, pieces=lambda: (time.sleep(0.25) or (digits(1),) for _ in range(3)))
    subject.backend.assess(RunRequest(model=DIGITS, inputs=slow, num_workers=1))
    ((total, shown),) = totals
    assert total == 3 and 0 <= shown <= 3


def test_contract_a_killed_worker_is_reported(subject, monkeypatch):
    monitors = []
    parse = child._Monitor._parse

    def watched(monitor, output):
        monitors.append(monitor)
        return parse(monitor, output)

    def pieces():
        yield (digits(1),)
        deadline = time.monotonic() + 60
        while True:  # the worker has reported its process ID when it is the first of several
            yield (digits(64),)
            if monitors and monitors[-1]._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(subject.process_here(monitors[-1]._pids[0]), signal.SIGKILL)
            assert time.monotonic() < deadline

    monkeypatch.setattr(child._Monitor, "_parse", watched)
    monkeypatch.setattr(worker, "RING_BYTES", 1 << 14)
    with refused(BackendError, got="SIGKILL"):
        stream = InputStream(num_examples=1 << 40, pieces=pieces)
        subject.backend.assess(RunRequest(model=DIGITS, inputs=stream, num_workers=1))


def test_contract_a_full_disk_is_an_error_that_says_so(subject):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a longer write fails as on a full disk
    try:
        with refused(BackendError, word="TMPDIR"):
            subject.assess(DIGITS, digits(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def dense_layers(count: int, dtype: str = "float32") -> bytes:
    """Return `count` dense layers of 256 inputs and outputs that share their weights."""
    scale = 0.1 if dtype == "int8" else None
    weights = np.random.default_rng(0).integers(-9, 9, (256, 256)).astype(dtype)
    tensors = {f"x{place}": T(dtype, (1, 256), scale) for place in range(count + 1)}
    tensors["w"] = T(dtype, (256, 256), scale, values=weights)
    calls = [Call("FULLY_CONNECTED", [f"x{i}", "w"], [f"x{i + 1}"], options("FullyConnected")) for i in range(count)]
    return build(tensors, calls, ["x0"], [f"x{count}"])


def test_contract_memory_and_packed_weights_are_measured(subject):
    if not (subject.backend.kind.reports_memory and subject.backend.kind.has_cpu_kernels):
        return

    def memory(model, dtype="float32", **settings):
        request = RunRequest(model=model, inputs=(np.zeros((1, 256), dtype),), measure_memory=True, **settings)
        result = subject.backend.assess(request)
        return result.memory_bytes, " ".join(result.notes)

    for dtype, size in (("float32", 4), ("int8", 1)):
        measured, notes = memory(dense_layers(1, dtype), dtype)
        assert "xnnpack_packed_weights" in measured, notes
        # Each weight is copied; each of the 256 outputs also has a bias, a scale and padding.
        assert 256 * 256 * size <= measured["xnnpack_packed_weights"] <= 256 * 256 * size + 256 * 64
        assert measured["peak_rss"] > measured["peak_rss.before_the_model"] > 4 << 20
        assert "packed" not in notes
    measured, notes = memory(dense_layers(3))
    assert measured["xnnpack_packed_weights"] < 2 * 256 * 256 * 4 and "2 more ops" in notes
    assert "xnnpack_packed_weights" not in memory(dense_layers(1), kernels="builtin")[0]


def timing_request() -> TimingRequest:
    models = tuple(
        TimedModel(name=name, model=DIGITS, inputs=(digits(2)[:, None],), tensors=(0,)) for name in ("one", "other")
    )
    return TimingRequest(models=models, num_runs=10, warmup_runs=1, min_secs=0.0)


def test_contract_models_and_ops_are_timed(subject):
    if not subject.backend.kind.times:
        with refused(BackendError, got=subject.backend.name):
            timing_backend(subject.backend)
        return
    request = timing_request()
    timings, machine = subject.backend.time_models(request)
    assert [len(timing.latencies_ms) >= 10 and timing.total_ops for timing in timings] == [9, 9]
    assert machine["machine"] == os.uname().machine
    events = subject.backend.profile_ops(dataclasses.replace(request, num_runs=3), request.models[0], "xnnpack")
    assert not isinstance(events, str) and any("SOFTMAX" in event.name.upper() for event in events)
    with refused(InputError, word="one"):
        wrong = dataclasses.replace(request.models[0], inputs=(digits(2).astype(np.float32)[:, None],))
        subject.backend.time_models(dataclasses.replace(request, models=(wrong,)))
