# SPDX-License-Identifier: Apache-2.0
"""The relay to a board: lost connections, damaged frames, a full board, and leftovers of a killed relay."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backend_contract import DIGITS, digits, local, soon
from messages import refused, warned
from piped_board import PipeBackend, PipeTransport

from tfq.backends import InputStream, RunRequest, worker
from tfq.backends.child import LostConnectionError
from tfq.backends.relay import backend, connection
from tfq.backends.relay.backend import frequency_notes
from tfq.backends.relay.board import PYTHON_VARIABLE, Board
from tfq.backends.relay.connection import Connection, Link, NoPythonError
from tfq.backends.target import relay, session
from tfq.errors import BackendError


@pytest.fixture(autouse=True)
def python(monkeypatch):
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    monkeypatch.setattr(worker, "RECONNECT_SECS", 0.01)


@pytest.fixture
def board(tmp_path):
    return PipeBackend(tmp_path / "board")


def relays(base: Path) -> list[int]:
    """Return the processes whose environment names this folder of a board, relay and worker."""
    results = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TFQ_BOARD_BASE={base}\0".encode() in (folder / "environ").read_bytes():
                results.append(int(folder.name))
        except OSError:
            continue
    return results


def kill_all(base: Path) -> None:
    pids = relays(base)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none cleans up after another one
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(worker, "BLOCK_EXAMPLES", 8)
    monkeypatch.setattr(worker, "RING_BYTES", 1 << 12)


def dropping(inputs, base: Path, times: int):
    """Return a stream that ends the connection in its middle, the first `times` times that it is read."""
    reads, seen = [], set()

    def has_new_folder():
        return bool(set((base / "relay/runs").glob("*")) - seen)

    def pieces():
        reads.append(1)
        for place, piece in enumerate(np.split(inputs, range(16, len(inputs), 16))):
            if place == 6 and len(reads) <= times:
                # The pieces may arrive in the pipe before the relay has replaced the folder of the killed one.
                assert soon(has_new_folder)
                seen.update((base / "relay/runs").glob("*"))
                kill_all(base)
            yield (piece,)

    return InputStream(num_examples=len(inputs), pieces=pieces)


def test_a_run_continues_with_the_examples_that_are_left(board, small_blocks, monkeypatch):
    inputs, remaining = digits(160), []
    feed = worker.Feed.request

    def watched(self):
        remaining.append(self.num_remaining)
        return feed(self)

    monkeypatch.setattr(worker.Feed, "request", watched)
    stream = dropping(inputs, board.base, times=1)
    with warned("again"):
        result = board.assess(RunRequest(model=DIGITS, inputs=stream, num_workers=1, num_runs=3))
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, inputs)[0])
    assert len(result.latencies_ms) == 3
    assert any("restored" in note for note in result.notes)
    assert remaining[0] == 160 and 0 < remaining[1] < 160


def test_a_connection_that_is_always_lost_ends_the_run(board, small_blocks):
    stream = dropping(digits(160), board.base, times=99)
    with pytest.warns(), refused(LostConnectionError):
        board.assess(RunRequest(model=DIGITS, inputs=stream, num_workers=1))
    assert soon(lambda: relays(board.base) == [])
    # What the killed relays have left is removed by the next run.
    assert len(list((board.base / "relay/runs").iterdir())) > 0
    board.assess(RunRequest(model=DIGITS, inputs=(digits(1),)))
    assert list((board.base / "relay/runs").iterdir()) == []


def test_lines_of_two_workers_do_not_mix_without_buffers(tmp_path, monkeypatch):
    # print() then writes a line in two parts, so that a worker's report may end up inside of another one's line.
    monkeypatch.setattr(worker, "BLOCK_EXAMPLES", 1)
    board = PipeBackend(tmp_path, before="export PYTHONUNBUFFERED=1")
    inputs = digits(3000)
    result = board.assess(RunRequest(model=DIGITS, inputs=(inputs,), num_workers=4))
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, inputs)[0])


def test_a_lost_report_of_a_block_is_an_error(board, monkeypatch):
    handle = connection.BoardChild._handle_line

    def lossy(child, line):
        handle(child, line[: line.rindex(b" ")] + b"\n" if line.startswith(b"free") else line)

    monkeypatch.setattr(connection.BoardChild, "_handle_line", lossy)
    with refused(BackendError, expected=5, got=0):
        board.assess(RunRequest(model=DIGITS, inputs=(digits(5),)))


def test_damaged_code_on_the_board_is_replaced(board):
    request = RunRequest(model=DIGITS, inputs=(digits(1),))
    board.assess(request)
    (code,) = (board.base / "relay").glob("code-*")
    (code / "session.py").write_text("raise SystemExit(3)")
    np.testing.assert_array_equal(board.assess(request).outputs[0], local(DIGITS, digits(1))[0])


def test_a_command_that_ends_well_without_an_end_frame_has_failed():
    for command in ("head -c 1 > /dev/null", r"head -c 1 > /dev/null; printf '\000tfq-relay\000'"):
        link = Link(name="x", command=["sh", "-c", command], explain=PipeTransport(Path("x")).explain)
        with refused(LostConnectionError, got=0):
            Connection(link)


def test_a_greeting_of_the_login_shell_is_skipped(tmp_path):
    board = PipeBackend(tmp_path, before="echo Welcome; echo; printf 'no newline'")
    assert board.assess(RunRequest(model=DIGITS, inputs=(digits(1),))).outputs[0].shape == (1, 10)


@pytest.mark.parametrize(("limit", "model"), [(8, DIGITS), (64, DIGITS), (1000, DIGITS + bytes(600_000))])
def test_a_full_disk_of_the_board_is_an_error_that_leaves_nothing(limit, model, tmp_path):
    # A limit on the size of a file, in blocks of 512 bytes: of the code, of the ring, of the model.
    board = PipeBackend(tmp_path, before=f"ulimit -f {limit}")
    with refused(BackendError, got=os.strerror(27)):
        board.assess(RunRequest(model=model, inputs=(digits(2000),)))
    assert soon(lambda: relays(tmp_path) == [])
    assert not (tmp_path / "relay/runs").exists() or list((tmp_path / "relay/runs").iterdir()) == []


def test_a_board_without_python_says_its_architecture(tmp_path, monkeypatch):
    monkeypatch.delenv(PYTHON_VARIABLE)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "mkdir", "uname", "id"):
        (tools / tool).symlink_to(shutil.which(tool))
    transport = PipeTransport(tmp_path / "board", before=f"PATH={tools}; export PATH")
    link = Link(name="x", command=transport.shell(Board(transport)._script()), explain=transport.explain)
    with refused(NoPythonError, got=os.uname().machine):
        Connection(link)


def test_a_python_without_the_interpreter_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON_VARIABLE, "/nonexistent/python")
    with refused(BackendError, field=PYTHON_VARIABLE, got="/nonexistent/python"):
        PipeBackend(tmp_path).assess(RunRequest(model=DIGITS, inputs=(digits(1),)))


def frames_of(content: bytes) -> relay.Frames:
    return relay.Frames(io.BytesIO(content), os.open(os.devnull, os.O_WRONLY))


def test_frames_that_do_not_belong_to_the_protocol_are_refused(tmp_path):
    def frame(kind, payload, length=None):
        return relay.HEADER.pack(kind, len(payload) if length is None else length) + payload

    assert frames_of(frame(relay.LINE, b"abc")).receive(relay.LINE) == (relay.LINE, b"abc")
    with pytest.raises(relay.ProtocolError):
        frames_of(frame(relay.LINE, b"abc")).receive(relay.END)
    with pytest.raises(relay.ProtocolError):
        frames_of(frame(relay.LINE, b"", length=1 << 40)).receive(relay.LINE)
    with pytest.raises(relay.ConnectionEnd):
        frames_of(frame(relay.LINE, b"abc", length=4)).receive(relay.LINE)
    for header in (b'{"name": "../evil", "size": 0}', b'{"name": "a", "size": -1}', b"[]", b"{"):
        with pytest.raises(relay.ProtocolError):
            frames_of(b"").receive_file(header, tmp_path)
    with pytest.raises(relay.ProtocolError):
        frames_of(frame(relay.DATA, b"too long")).receive_file(b'{"name": "a", "size": 3}', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_boards_side_needs_only_the_standard_library(tmp_path):
    # Python 3.9 must read it, even where it then reports that the board needs a newer Python.
    source = Path(relay.__file__).read_text()
    compile(source, "relay.py", "exec", flags=0x400, _feature_version=9)
    code = "import sys; sys.modules.update(numpy=None, ai_edge_litert=None); import runpy; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, relay.__file__], check=True)


def test_a_falling_frequency_and_a_governor_are_reported():
    steady = {"governors": ["performance"], "lowest_khz": 1_700_000, "highest_khz": 1_800_000}
    assert frequency_notes(steady) == frequency_notes({}) == []
    (note,) = frequency_notes({**steady, "governors": ["ondemand", "performance"]})
    assert "ondemand" in note
    (note,) = frequency_notes({**steady, "lowest_khz": 1_000_000})
    assert "1,800" in note and "1,000" in note
    frequency = relay.Frequency()
    for khz in ("600000", "1800000", "1000000", "1500000"):
        relay.read_lines, before = lambda pattern, khz=khz: [khz], relay.read_lines
        try:
            frequency.sample()
        finally:
            relay.read_lines = before
    # A clock that first rises has not fallen.
    assert (frequency.highest, frequency.lowest) == (1_800_000, 1_000_000)


def test_the_cores_of_a_board_are_named():
    # From a big.LITTLE board (RK3588) and an x86 machine; another company's part number is not one of Arm's.
    little = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\nCPU revision\t: 0\n"
    big = little.replace("0xd05", "0xd0b").replace(": 0\n", ": 4\n")
    assert session.cpu_name(f"{little}\n{little}\n{big}\nSerial\t\t: 6a1c27a39c1f3a2e\n") == "Cortex-A55, Cortex-A76"
    assert session.cpu_name(little.replace("0x41", "0x51")) == "0xd05"
    assert session.cpu_name("model name\t: AMD EPYC\nmodel name\t: AMD EPYC\n") == "AMD EPYC"
    assert session.cpu_name("") is None


# Runs a stream that never ends.
HOST = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from piped_board import PipeBackend
from tfq.backends import InputStream, RunRequest
def pieces():
    while True:
        yield (np.zeros((64, 8, 8, 1), np.int8),)
        time.sleep(0.01)
stream = InputStream(num_examples=1 << 40, pieces=pieces)
PipeBackend(Path(sys.argv[2])).assess(RunRequest(model=Path(sys.argv[3]).read_bytes(), inputs=stream))
"""


def test_a_board_stops_when_the_host_is_killed(tmp_path, temporary):
    (tmp_path / "model").write_bytes(DIGITS)
    folder, base = Path(__file__).resolve().parent.parent, tmp_path / "board"
    host = subprocess.Popen([sys.executable, "-c", HOST, str(folder), str(base), str(tmp_path / "model")])
    assert soon(lambda: list(base.glob("relay/runs/*/output_0")) != [])
    assert len(relays(base)) > 1
    host.kill()
    host.wait()
    assert soon(lambda: relays(base) == [])
    assert list((base / "relay/runs").iterdir()) == []


def test_a_board_that_cannot_be_reached_is_not_available(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "_reached", set())
    assert PipeBackend(tmp_path, before="exit 0").unavailable() == str(PipeTransport(tmp_path).explain(0, ""))
    assert PipeBackend(tmp_path).unavailable() is None
    # The answer is remembered.
    assert PipeBackend(tmp_path, before="exit 0").unavailable() is None
