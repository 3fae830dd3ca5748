# SPDX-License-Identifier: Apache-2.0
"""Run one request on a board for a host that is connected only by stdin and stdout.

The host starts `python -c "import sys; exec(sys.stdin.buffer.read(SIZE))"` and writes this file to it. This file needs
only Python 3.9. The modules next to it, which the host sends too, need NumPy and ai_edge_litert.

After MAGIC on stdout, both sides send frames: kind (1 byte), length of the payload (8 bytes, big-endian), payload.

The environment variable TFQ_BOARD_BASE names the folder for code and runs. TFQ_BOARD_MODEL is the name of the board's
model, if the device tree does not have it.

From the host: HELLO {"version", "code"}; CODE {file: source} if the board does not have the code; a FILE
{"name", "size"} and its DATA for each file of the run; RUN {"request", "slots", "stdin"}; then BLOCK (a message for the
worker's stdin, and the bytes of its slot) and END_OF_INPUT.

From the board: HELLO {"version", "has_code", facts about the board}; LINE (of the worker's stdout); CLOCK {"cpu_secs"};
OUTPUT (slot, index of the output, position, number of bytes of this output of the block; some of these bytes); FILE and
DATA for each file that the worker has written; STDERR; END {"status": exit code, "frequency": ...}, or END {"error":
reason, "place": folder} if the board could not run the worker. A run has succeeded only if its END has arrived.

If stdin ends, the run is stopped and its folder removed. Each relay holds a lock on its folder, so a later run
recognizes and removes the folder of a relay that was killed.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import importlib.machinery
import json
import mmap
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import types

VERSION = 1
MAGIC = b"\x00tfq-relay\x00"
HEADER = struct.Struct(">cQ")
BLOCK_HEADER = struct.Struct("<qqq")  # index of the first example, number of examples, slot: as in examples.py
OUTPUT_HEADER = struct.Struct(">IIQQ")
HELLO, CODE, FILE, DATA, RUN, BLOCK, END_OF_INPUT = b"h", b"c", b"f", b"d", b"r", b"b", b"e"
LINE, CLOCK, OUTPUT, STDERR, END = b"l", b"t", b"o", b"s", b"x"
CHUNK = 1 << 20
# Largest payload of each kind.
LIMITS = {
    HELLO: 1 << 16,
    CODE: 16 << 20,
    FILE: 1 << 12,
    DATA: CHUNK,
    RUN: 64 << 20,
    BLOCK: BLOCK_HEADER.size,  # plus the bytes of a slot
    END_OF_INPUT: 0,
    LINE: 1 << 20,
    CLOCK: 1 << 12,
    OUTPUT: CHUNK + OUTPUT_HEADER.size,
    STDERR: 1 << 17,
    END: 1 << 16,
}
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
STDERR_BYTES = 1 << 16
CLOCK_SECS = 1.0
MAX_RING_BYTES = 1 << 34
PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class ProtocolError(Exception):
    """The other side sent something that does not belong to the protocol."""


class ConnectionEnd(Exception):
    """The connection has ended."""


class Frames:
    """Frames over two files."""

    def __init__(self, reading, writing):
        """Use `reading`, an object with read(count), and `writing`, a file descriptor."""
        self.reading, self.writing = reading, writing
        self.limits = dict(LIMITS)
        self.lock = threading.Lock()

    def receive(self, *kinds):
        """Return (kind, payload) of the next frame.

        Raises:
            ConnectionEnd: There is none.
            ProtocolError: Its kind is none of `kinds`, or it is too long.
        """
        kind, length = HEADER.unpack(self._read(HEADER.size))
        if kind not in kinds or length > self.limits[kind]:
            raise ProtocolError(f"a frame of kind {kind!r} and {length:,} bytes, expected one of {kinds}")
        return kind, self._read(length)

    def receive_json(self, kind):
        """Return the JSON value of the next frame, which must be of this kind."""
        return parse_json(self.receive(kind)[1])

    def send(self, kind, *parts):
        """Send a frame whose payload is the bytes of all parts."""
        header = HEADER.pack(kind, sum(len(part) for part in parts))
        with self.lock:
            for part in (header, *parts):
                view = memoryview(part)
                while view:
                    view = view[os.write(self.writing, view) :]

    def send_json(self, kind, value):
        """Send a frame with a JSON value."""
        self.send(kind, json.dumps(value).encode())

    def send_file(self, name, path):
        """Send a file as FILE and DATA frames."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_json(FILE, {"name": name, "size": size})
            while size:
                content = file.read(min(CHUNK, size))
                if not content:
                    raise OSError(f"{name} became shorter while it was sent")
                self.send(DATA, content)
                size -= len(content)

    def receive_file(self, header, directory):
        """Write the file that a FILE frame announces. Returns its name."""
        value = parse_json(header)
        name, size = value.get("name"), value.get("size")
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name) or not isinstance(size, int) or size < 0:
            raise ProtocolError(f"a file called {name!r} of {size!r} bytes")
        failure = None
        with open(os.path.join(directory, name), "wb") as file:
            while size:
                _, content = self.receive(DATA)
                if not 0 < len(content) <= size:
                    raise ProtocolError(f"{len(content):,} bytes of {name}, expected 1 to {size:,}")
                size -= len(content)
                try:
                    file.write(content)
                except OSError as error:
                    failure = error  # read the rest: the sender waits for an answer only after the file
        if failure is not None:
            raise failure
        return name

    def _read(self, count):
        content = self.reading.read(count) if count else b""
        if len(content) < count:
            raise ConnectionEnd
        return content


def parse_json(content):
    """Return the JSON object of a payload. Raise ProtocolError if it is not one."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ProtocolError(f"a frame that is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"a frame with a {type(value).__name__}, expected a JSON object")
    return value


def digest(sources):
    """Return the name of some code: a hash of {file: source}."""
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def make_base():
    """Return the folder for code and runs. It is created if necessary; only this user can read the runs."""
    base = os.environ["TFQ_BOARD_BASE"]
    os.makedirs(os.path.join(base, "relay", "runs"), mode=0o700, exist_ok=True)
    if os.lstat(base).st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{base} belongs to another user")
    return os.path.join(base, "relay")


def read_code(folder):
    """Return {file: source} of the code in a folder; {} if it is not there."""
    sources = {}
    for path in glob.glob(os.path.join(glob.escape(folder), "*.py")):
        with open(path, encoding="utf-8") as file:
            sources[os.path.basename(path)] = file.read()
    return sources


def store_code(base, name, sources):
    """Write code to its folder, atomically. Raises ProtocolError if it is not the code called `name`."""
    if digest(sources) != name or not all(FILE_NAME.fullmatch(file) for file in sources):
        raise ProtocolError("code that does not have the announced hash")
    folder = os.path.join(base, "code-" + name)
    temporary = tempfile.mkdtemp(prefix=".code-", dir=base)
    try:
        for file, source in sources.items():
            with open(os.path.join(temporary, file), "w", encoding="utf-8") as stream:
                stream.write(source)
        if os.path.isdir(folder):
            shutil.rmtree(folder)  # damaged
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Scratch:
    """The folder of a run, with a lock that the operating system releases when this process ends."""

    def __init__(self, base):
        """Remove the folders of killed relays, then create one."""
        runs = os.path.join(base, "runs")
        lock = os.open(os.path.join(base, "lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in [*glob.glob(os.path.join(glob.escape(runs), "*")), *glob.glob(os.path.join(base, ".code-*"))]:
                sweep(stale)
            self.path = tempfile.mkdtemp(dir=runs)
            self.owner = os.open(os.path.join(self.path, ".owner"), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self.owner, fcntl.LOCK_EX)
        finally:
            os.close(lock)

    def remove(self):
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(folder):
    """Remove a folder unless its owner is alive."""
    try:
        owner = os.open(os.path.join(folder, ".owner"), os.O_RDWR)
    except FileNotFoundError:
        if time.time() - os.stat(folder).st_mtime > 60 or os.path.basename(os.path.dirname(folder)) == "runs":
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(owner)


def memory():
    """Return the bytes of memory of this board, or of the control group of this process if that is less."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name) as file:
                available = min(available, int(file.read()))
        except (OSError, ValueError):
            pass
    return available


def read_lines(pattern):
    """Return the first line of each file that matches the pattern."""
    lines = []
    for path in sorted(glob.glob(pattern)):
        try:
            with open(path) as file:
                lines.append(file.readline().strip())
        except OSError:
            pass
    return lines


class Frequency:
    """The clock frequency of the CPU while a run uses it, in kHz, and the governors that choose it.

    `lowest` is the lowest value after the highest one.
    """

    POLICY = "/sys/devices/system/cpu/cpufreq/policy*/"

    def __init__(self):
        """Take no sample yet."""
        self.lowest = self.highest = 0

    def sample(self):
        """Take a sample: the highest frequency of all cores, because the idle ones may be slow."""
        values = [int(line) for line in read_lines(self.POLICY + "scaling_cur_freq") if line.isdigit()]
        if values and max(values) > self.highest:
            self.lowest = self.highest = max(values)
        elif values:
            self.lowest = min(self.lowest, max(values))

    def report(self):
        """Return the samples and settings as JSON values; a missing one is null or empty."""
        limits = [int(line) for line in read_lines(self.POLICY + "cpuinfo_max_freq") if line.isdigit()]
        governors = sorted(set(read_lines(self.POLICY + "scaling_governor")))
        limit = max(limits, default=None)
        return {
            "governors": governors,
            "lowest_khz": self.lowest or None,
            "highest_khz": self.highest or None,
            "limit_khz": limit,
        }


class Worker:
    """The process that runs the target's code, a fork of this one."""

    def __init__(self, code, directory, stdin):
        """Start it. This process must have only one thread."""
        parent, null = os.getpid(), os.open(os.devnull, os.O_RDONLY)
        read_in, self.stdin = os.pipe() if stdin else (os.dup(null), -1)
        self.stdout, write_out = os.pipe()
        self.stderr, write_err = os.pipe()
        self.pid, self.status, self.lock = os.fork(), None, threading.Lock()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                for target, source in enumerate((read_in, write_out, write_err)):
                    os.dup2(source, target)
                os.closerange(3, 1 << 16)
                # If PYTHONUNBUFFERED is set, print() writes a line in two parts, and those of two workers may mix.
                sys.stdout = os.fdopen(1, "w")
                status = load_target(code).main(directory, parent)
                sys.stdout.flush()
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        for descriptor in (null, read_in, write_out, write_err):
            os.close(descriptor)

    def kill(self):
        """End the worker and its forks now."""
        with self.lock:
            if self.status is None:
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGKILL)

    def wait(self):
        """Wait for the end, end the forks, and return the exit code (-N for signal N)."""
        if self.status is None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        with self.lock:
            if self.status is None:
                status = os.waitpid(self.pid, 0)[1]
                self.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return self.status


def load_target(code):
    """Return the target's module __main__."""
    path = os.path.join(code, "__main__.py")
    module = types.ModuleType("tfq_target_main")
    module.__file__ = path
    importlib.machinery.SourceFileLoader(module.__name__, path).exec_module(module)
    return module


class Run:
    """A running worker, and what passes between it and the host."""

    def __init__(self, frames, scratch, code, run):
        """Start the worker of a RUN frame."""
        self.frames, self.scratch = frames, scratch
        self.known = set(os.listdir(scratch.path))
        request = run["request"]
        self.ring, self.slot_bytes, self.counts = None, int(request.get("slot_bytes", 0)), {}
        frames.limits[BLOCK] = BLOCK_HEADER.size + self.slot_bytes
        size = int(run["slots"]) * self.slot_bytes
        if size:
            if not 0 < size <= MAX_RING_BYTES:
                raise ProtocolError(f"a ring of {size:,} bytes")
            with open(os.path.join(scratch.path, "ring"), "w+b") as file:
                # Allocate now: if the disk is full later, writing to the mapping is a SIGBUS instead of an error.
                os.posix_fallocate(file.fileno(), 0, size)
                self.ring = mmap.mmap(file.fileno(), size)
        with open(os.path.join(scratch.path, "request.json"), "w") as file:
            json.dump(request, file)
        self.known |= {"ring", "request.json"}
        self.outputs, self.pids, self.errors, self.frequency = {}, [], b"", Frequency()
        self.punch = getattr(ctypes.CDLL(None), "fallocate64", None)
        self.ended = threading.Event()
        self.worker = Worker(code, scratch.path, bool(run["stdin"]))

    def serve(self):
        """Pass everything on until the worker has ended, then send its files and its exit code."""
        works = (self.read_frames, self.read_errors, self.watch)
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        try:
            rest = b""
            while content := os.read(self.worker.stdout, 1 << 16):
                *lines, rest = (rest + content).split(b"\n")
                for line in lines:
                    self.handle_line(line)
            status = self.worker.wait()
        finally:
            self.worker.kill()
            self.ended.set()
        threads[1].join(10)
        for name in sorted(set(os.listdir(self.scratch.path)) - self.known):
            if FILE_NAME.fullmatch(name) and not name.startswith("output_"):
                self.frames.send_file(name, os.path.join(self.scratch.path, name))
        # The name of the user is not reported.
        self.frames.send(STDERR, self.errors.replace(os.fsencode(os.path.expanduser("~")) + b"/", b"~/"))
        return {"status": status, "frequency": self.frequency.report()}

    def handle_line(self, line):
        """Pass on a line of the worker, after the outputs that it announces."""
        words = line.split()
        if words[:1] == [b"free"] and len(words) > 2:
            slot = int(words[1])
            for index, size in enumerate(map(int, words[2:])):
                self.send_output(slot, index, size)
        elif words[:1] == [b"started"]:
            self.pids += [int(word) for word in words[1:] if word.isdigit()]
        self.frames.send(LINE, line[: LIMITS[LINE] - 1], b"\n")

    def send_output(self, slot, index, size):
        """Send the outputs of the block in a slot, and release their disk space. `size`: bytes of one example."""
        start, count = self.counts[slot]
        if index not in self.outputs:
            self.outputs[index] = os.open(os.path.join(self.scratch.path, f"output_{index}"), os.O_RDWR)
        file, begin, total, done = self.outputs[index], start * size, count * size, 0
        while done < total:
            content = os.pread(file, min(CHUNK, total - done), begin + done)
            if not content:
                raise OSError(errno.EIO, f"output {index} is shorter than the worker says")
            self.frames.send(OUTPUT, OUTPUT_HEADER.pack(slot, index, done, total), content)
            done += len(content)
        if self.punch is not None:  # fails where the file system cannot; then the file keeps its space
            self.punch(file, PUNCH_HOLE, ctypes.c_int64(begin), ctypes.c_int64(total))

    def read_frames(self):
        """Thread: pass on the host's frames. If the host is gone, stop everything."""
        try:
            while True:
                kind, payload = self.frames.receive(BLOCK, END_OF_INPUT)
                if kind == END_OF_INPUT:
                    if self.worker.stdin >= 0:
                        os.close(self.worker.stdin)
                        self.worker.stdin = -1
                    continue
                start, count, slot = BLOCK_HEADER.unpack_from(payload)
                content = payload[BLOCK_HEADER.size :]
                begin = slot * self.slot_bytes
                if (
                    slot < 0
                    or start < 0
                    or len(content) > self.slot_bytes
                    or begin + len(content) > len(self.ring or b"")
                ):
                    raise ProtocolError(f"a block of {len(content):,} bytes in slot {slot}")
                if count and self.ring is not None:
                    self.ring[begin : begin + len(content)] = content
                    self.counts[slot] = (start, count)
                with contextlib.suppress(BrokenPipeError):  # the worker has ended, and its exit code says why
                    os.write(self.worker.stdin, payload[: BLOCK_HEADER.size])
        except BaseException:
            self.abort()

    def read_errors(self):
        """Thread: keep the end of the worker's stderr."""
        while True:
            content = os.read(self.worker.stderr, 1 << 16)
            if not content:
                return
            self.errors = (self.errors + content)[-STDERR_BYTES:]

    def watch(self):
        """Thread: report the CPU time of the worker, and the CPU's frequency while it works."""
        before = self.cpu_secs()
        while not self.ended.wait(CLOCK_SECS):
            now = self.cpu_secs()
            if now - before > CLOCK_SECS / 2:
                self.frequency.sample()
            before = now
            try:
                self.frames.send_json(CLOCK, {"cpu_secs": now})
            except OSError:
                self.abort()

    def cpu_secs(self):
        """Return the CPU seconds that the worker and its forks have used so far."""
        ticks = 0
        for pid in list(self.pids):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
            except (OSError, IndexError):
                pass
        return ticks / os.sysconf("SC_CLK_TCK")

    def abort(self):
        """Stop the worker, remove the folder, and end this process."""
        try:
            self.worker.kill()
            self.worker.wait()
        finally:
            self.scratch.remove()
            os._exit(1)


def main():
    """Serve one run, and return the exit code."""
    frames = Frames(sys.stdin.buffer, os.dup(1))
    os.dup2(2, 1)  # anything that prints must not mix with the frames
    scratch, place = None, "its cache"
    try:
        os.write(frames.writing, MAGIC)
        hello = frames.receive_json(HELLO)
        if hello.get("version") != VERSION or not re.fullmatch("[0-9a-f]{64}", str(hello.get("code"))):
            raise ProtocolError(f"version {hello.get('version')!r} of the protocol, expected {VERSION}")
        base = make_base()
        home = os.path.expanduser("~")
        place = os.path.join("~", os.path.relpath(base, home)) if base.startswith(home + "/") else base
        code = os.path.join(base, "code-" + hello["code"])
        has_code = digest(read_code(code)) == hello["code"]
        facts = {
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": memory(),
            "place": place,
            "model": next(iter(read_lines("/proc/device-tree/model")), "").rstrip("\0")
            or os.environ.get("TFQ_BOARD_MODEL", ""),
        }
        frames.send_json(HELLO, {"version": VERSION, "has_code": has_code, **facts})
        kind, payload = frames.receive(*(() if has_code else (CODE,)), FILE, RUN)
        if kind == CODE:
            store_code(base, hello["code"], parse_json(payload))
            kind, payload = frames.receive(FILE, RUN)
        scratch = Scratch(base)
        while kind == FILE:
            frames.receive_file(payload, scratch.path)
            kind, payload = frames.receive(FILE, RUN)
        run = Run(frames, scratch, code, parse_json(payload))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: run.abort())
        end = run.serve()
        scratch.remove()
        frames.send_json(END, end)
        return 0
    except ConnectionEnd:
        return 1
    except (OSError, ProtocolError, KeyError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            frames.send_json(END, {"error": reason, "place": place})
        return 1
    finally:
        if scratch is not None:
            scratch.remove()


if __name__ == "__main__":
    status = main()
    # The thread that reads stdin may still hold its lock, which the regular shutdown would wait for.
    sys.stderr.flush()
    os._exit(status)
