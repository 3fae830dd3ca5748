# SPDX-License-Identifier: Apache-2.0
"""Files: reading those of the user, atomic writes, hashes, locks, the cache directory."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from tfq.errors import InputError, TfqError, warn
from tfq.progress import printable
from tfq.typing import PathOrBytes


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write `content` to `path` atomically: to a temporary file next to it, then fsync, then rename.

    Raises:
        TfqError: The write fails, for example because the disk is full. `path` is unchanged then.
    """
    path = Path(path)
    temporary = None
    try:
        # tempfile would make the file private to its owner; open() applies the user's umask.
        fresh = path.with_name(f"{temporary_prefix()}{path.name}.{secrets.token_hex(8)}")
        with open(fresh, "xb") as file:
            temporary = fresh
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise TfqError(
            f"cannot write {path} ({len(content)} bytes): {error.strerror or error}", got=error.strerror
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path with the suffix of `path`, for libraries that write a file by name.

    It is a link to memory, so a full disk cannot end the process or leave half of a file, as HDF5 does. If the block
    succeeds, the content is written to `path` as `write_bytes` does. The link is deleted in any case.

    Raises:
        TfqError: The write fails, for example because the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f"{temporary_prefix()}{path.name}")
    memory = os.memfd_create(path.name[-200:])
    try:
        temporary.symlink_to(f"/proc/{os.getpid()}/fd/{memory}")
        yield temporary
        content = temporary.read_bytes()
    except OSError as error:
        # h5py puts a long dump into strerror.
        reason = os.strerror(error.errno) if error.errno else str(error)
        size = os.fstat(memory).st_size
        raise TfqError(f"cannot write {path} ({size} bytes so far): {reason}", got=reason) from error
    finally:
        os.close(memory)
        with contextlib.suppress(OSError):
            temporary.unlink()
    write_bytes(path, content)


def copy_file(source: Path, path: Path) -> Path:
    """Copy the content of `source` to `path` atomically, as `write_bytes` does."""
    return write_bytes(path, source.read_bytes())


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the file names in a directory durable, so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_prefix() -> str:
    """Return the start of the names of this process's temporary files, by which `sweep` finds those of killed ones."""
    return f".tfq-{os.getpid()}-"


def sweep(directory: Path) -> None:
    """Delete the temporary files and folders in `directory` of processes that were killed while writing."""
    for path in directory.glob(".tfq-*"):
        pid = path.name.removeprefix(".tfq-").partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                path.unlink()


def is_alive(pid: int) -> bool:
    """Check whether a process with this ID runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` in UTF-8 atomically, as `write_bytes` does.

    A file name that is not UTF-8 is written with escapes.
    """
    return write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` to `path` as strict, indented JSON atomically, as `write_bytes` does.

    Raises:
        TfqError: The write fails, or `value` contains NaN or infinity, which JSON does not support.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise TfqError(
            f"cannot write {path}: {error}: write null and a reason instead",
            expected="JSON values",
            got=str(error),
        ) from error
    return write_text(path, text + "\n")


def open_file(path: str | os.PathLike[str], expected: str, *, field: str | None = None) -> io.BufferedReader:
    """Open a file of the user for reading. All files that tfq does not write itself are opened here.

    Args:
        path: The file. A symbolic link is followed.
        expected: What the file should be, in a few words, for the errors.
        field: The argument or config path that named the file, for the errors.

    Raises:
        InputError: There is no such file, it cannot be read, or it is not a regular file: a directory, a named pipe or
            a device. These could block, or never end.
    """
    descriptor, cause = -1, cast(Exception | None, None)
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        problem = next((text for check, text in _KINDS if check(mode)), "is not a regular file")
    except FileNotFoundError as error:
        problem, cause = "does not exist", error
    except (OSError, ValueError) as error:  # ValueError: the path contains a null character or a surrogate
        problem, cause = f"cannot be read: {getattr(error, 'strerror', None) or error}", error
    if descriptor >= 0:
        os.close(descriptor)
    where = f"{field}: " if field else ""
    raise InputError(
        f"{where}{shown(path)} {problem}: expected {expected}", field=field, expected=expected, got=str(path)
    ) from cause


_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a named pipe, not a regular file"),
    (stat.S_ISCHR, "is a device, not a regular file"),
    (stat.S_ISBLK, "is a device, not a regular file"),
    (stat.S_ISSOCK, "is a socket, not a regular file"),
)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message: line breaks and control characters are escaped, and a very long one is cut."""
    text = printable(os.fspath(path)).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text):,} characters)"


_MAX_SHOWN = 500
# Longer files are not read into memory at once.
MAX_FILE_BYTES = 4 << 30
# A part of a file that is larger than the floor, and compressed more than a hundredfold, is treated as a decompression
# bomb. DEFLATE reaches 1032.
MAX_EXPANSION, BOMB_FLOOR_BYTES = 100, 64 << 20


def check_expansion(where: str, stored: int, declared: int) -> None:
    """Raise InputError if so few stored bytes cannot be the weights of a model with so many declared bytes."""
    if declared > BOMB_FLOOR_BYTES and declared > MAX_EXPANSION * stored:
        raise InputError(
            f"{where} expands from {stored:,} to {declared:,} bytes, like a decompression bomb. Expected a model that "
            "Keras saved",
            field="model",
            expected=MAX_EXPANSION * stored,
            got=declared,
        )


def read_bytes(
    path: str | os.PathLike[str], expected: str, *, field: str | None = None, max_bytes: int = MAX_FILE_BYTES
) -> bytes:
    """Return the content of the file at `path`.

    Args:
        path: The file.
        expected: What the file should be, in a few words, for the errors.
        field: The argument or config path that named the file, for the errors.
        max_bytes: The largest size that is read.

    Raises:
        InputError: As in `open_file`, or the file is empty or too large.
    """
    with open_file(path, expected, field=field) as file, decoding(path, expected, field=field):
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes and (content := file.read(max_bytes + 1)) and len(content) <= max_bytes:
            return content
    where = f"{field}: " if field else ""
    problem = f"has {size:,} bytes, and tfq reads at most {max_bytes:,}" if size else "is empty"
    raise InputError(
        f"{where}{shown(path)} {problem}: expected {expected}", field=field, expected=expected, got=str(path)
    )


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str], expected: str, *, field: str | None = None) -> Iterator[None]:
    """Turn every exception of a decoder inside into an InputError that names the file.

    Decoders of damaged files raise exceptions of many types, some of them private (`zlib.error`, `TokenError`).

    Args:
        path: The file.
        expected: What the file should be, in a few words.
        field: The argument or config path that named the file.

    Raises:
        InputError: Anything was raised inside. Errors of tfq itself are passed on.
    """
    try:
        yield
    except TfqError:
        raise
    except Exception as error:
        raise InputError(
            f"{shown(path)} is damaged or of another format ({type(error).__name__}: {reason(error)}). Expected "
            f"{expected}",
            field=field,
            expected=expected,
            got=str(path),
        ) from error


def reason(error: Exception) -> str:
    """Return the message of a decoder's exception for another message: on one line, and not too long."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:_MAX_SHOWN]


def content_of(source: PathOrBytes, field: str, expected: str = "a .tflite file") -> bytes:
    """Return `source` itself if it is bytes, or the content of the file that it names.

    Args:
        source: The content, or the path of its file.
        field: The argument that holds it, for the errors.
        expected: What the content should be, in a few words, for the errors.

    Raises:
        InputError: `source` has another type, or the file does not exist, is a directory, is empty or cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_bytes(source, expected, field=field)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    raise InputError(
        f"{field} is a {type(source).__name__}: expected {expected}, as a path or as bytes",
        field=field,
        expected=expected,
        got=type(source).__name__,
    )


def read_json(path: str | os.PathLike[str], *, field: str | None = None) -> Any:
    """Return the value in a JSON file.

    Args:
        path: The file.
        field: The argument or config path that named the file, for the errors.

    Raises:
        InputError: The file cannot be read, it is not JSON (the message has the line and the column), it is nested too
            deeply, it has a key twice in an object, or it has a number or a text that Python cannot represent.
    """
    content = read_bytes(path, "a JSON file", field=field, max_bytes=MAX_JSON_BYTES)
    try:
        value = json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        # Half of a surrogate pair ("\\ud800") is accepted by the parser, but cannot be printed or written. The other
        # half (from "\\udc80") stands for a byte of a path that is not UTF-8.
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
        return value
    except RecursionError as error:
        problem, cause = "it is nested too deeply", cast(Exception, error)
    except ValueError as error:
        problem, cause = str(error)[:_MAX_SHOWN], error
    raise InputError(
        f"{shown(path)} is not JSON that tfq reads: {problem}. Correct the file", field=field, got=str(path)
    ) from cause


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some pairs. With a key twice, it would be a matter of chance which value counts."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in an object")
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number in JSON")


MAX_JSON_BYTES = 64 << 20


def check_out_is_set(path: str | os.PathLike[str]) -> None:
    """Check that an output directory is named, without creating it.

    Raises:
        InputError: The path is empty.
    """
    if not os.fspath(path):
        raise InputError(
            "out is missing: expected a directory to write to", field="out", expected="a directory", got=""
        )


def check_out_dir(path: str | os.PathLike[str]) -> None:
    """Check that an output directory exists and is writable, or can be created. Nothing remains of the check.

    Raises:
        InputError: The path is empty, a file is in the way, or the directory or its first existing parent is not
            writable.
    """
    check_out_is_set(path)
    place = Path(path)
    try:
        # A link to nothing is in the way.
        while not _exists(place) and not place.is_symlink() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise InputError(
                f"out={shown(path)} cannot be used because {shown(place)} is not a directory: choose another directory",
                field="out",
                expected="a directory",
                got=str(path),
            )
    except (OSError, ValueError) as error:  # the path is too long, or contains a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"out={shown(path)} cannot be used: {reason}. Choose another directory", field="out", got=str(path)
        ) from error
    if problem := _why_not_writable(place):
        raise InputError(
            f"out={shown(path)}: {shown(place)} is not writable ({problem}). Choose another directory, or change its "
            "permissions",
            field="out",
            expected="a writable directory",
            got=str(path),
        )


def _why_not_writable(directory: Path) -> str:
    """Return why no file can be created and listed in a directory; "" if it can. A full disk is found later."""
    probe = directory / f"{temporary_prefix()}{secrets.token_hex(8)}"
    try:
        # Permissions do not show everything: the file system may be read-only, or one of the system, such as /proc.
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
        os.close(os.open(directory, os.O_RDONLY))
    except OSError as error:
        return "" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return ""


def _exists(path: Path) -> bool:
    """Return whether `path` exists. Unlike Path.exists, raise for paths that cannot exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_out_dir(path: str | os.PathLike[str]) -> Path:
    """Create the directory at `path` with its parents, and return it.

    Raises:
        InputError: As in `check_out_dir`, or the directory cannot be created.
    """
    check_out_dir(path)
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out={shown(path)} cannot be created: {error.strerror}. Choose another directory",
            field="out",
            expected="a directory",
            got=str(path),
        ) from error
    return directory


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str], *, field: str | None = None) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read in pieces.

    Args:
        path: The file.
        field: The argument or config path that named the file, for the errors.

    Raises:
        InputError: The file cannot be read; see `open_file`.
    """
    with open_file(path, "a file", field=field) as file, decoding(path, "a file that can be read", field=field):
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file or directory.

    For a directory it is the hash of the names and hashes of all files in it, at any depth.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256_file(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    listed = [f"{item.relative_to(path).as_posix()} {sha256_file(item)}\n" for item in files]
    return sha256("".join(listed).encode())


def cache_dir() -> Path:
    """Return the cache directory, and create it: $TFQ_CACHE_DIR, or $XDG_CACHE_HOME/tfq, or ~/.cache/tfq."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(os.environ.get("TFQ_CACHE_DIR") or os.path.join(base, "tfq"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TfqError(f"the cache directory {path} cannot be created: {error.strerror}: set TFQ_CACHE_DIR") from error
    return path


@contextlib.contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of an output directory, and delete what killed processes left in it.

    Waits, with a warning, while another process holds it. The thread that holds the lock may lock the directory again.
    """

    def waiting() -> None:
        warn(f"another command writes to {directory}: waiting for its end")

    with locked(directory / ".lock", waiting):
        sweep(directory)
        yield


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, which is created if missing.

    The lock ends with the process at the latest. It is reentrant: the thread that holds it may enter again.

    Args:
        path: The lock file.
        on_wait: Called once if another process holds the lock, before waiting for it.

    Raises:
        TfqError: The file cannot be created or locked.
    """
    name = os.path.realpath(path)
    if name in _locks_of_thread.names:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise TfqError(f"cannot lock {path}: {error.strerror or error}", got=error.strerror) from error
        _locks_of_thread.names.add(name)
        stack.callback(_locks_of_thread.names.discard, name)
        yield


class _LocksOfThread(threading.local):
    """The lock files that the current thread holds."""

    def __init__(self) -> None:
        self.names: set[str] = set()


_locks_of_thread = _LocksOfThread()
