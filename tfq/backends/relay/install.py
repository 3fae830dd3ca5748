# SPDX-License-Identifier: Apache-2.0
"""Install the runtime on a board: next to its final folder at first, and renamed when it is complete."""

import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tfq.backends.relay import runtime
from tfq.backends.relay.transport import Transport, last_lines, run_script
from tfq.errors import BackendError, warn

INSTALL_SECS = 1800.0
INSTALLED, PART, PUSHED = b"tfq-installed", b"tfq-part ", b"tfq-pushed"
# Receive and unpack the archive, which is the script's stdin.
RECEIVE = """
    cat > "$part/archive" || exit 97
    [ "$(sha256sum < "$part/archive")" = "{sha256}  -" ] || {{
        echo "the runtime did not arrive completely: $(sha256sum < "$part/archive")" >&2; exit 98; }}
    mkdir "$part/tree" && gzip -dc < "$part/archive" | tar -xf - -C "$part/tree" || exit 97
"""
# Wait until another command has copied the files. If the host is killed, `read` ends too, and the files are removed.
AWAIT_PUSH = f"""
    echo "{PART.decode()}$PWD/$part"
    read -r answer
    [ "$answer" = {PUSHED.decode()} ] || exit 98
    sh "$part/tree/{runtime.START}" -B -c "import numpy, ai_edge_litert.interpreter" < /dev/null > /dev/null || exit 98
"""


def install(transport: Transport, prepare: str, archive: runtime.Archive) -> None:
    """Install the runtime.

    Args:
        transport: The way to the board.
        prepare: Commands that create the folder for tfq's files on the board, and set `base` to it.
        archive: The runtime.

    Raises:
        BackendError: A step failed. Nothing of the runtime is left on the board then.
    """
    name = transport.name
    warn(f"{name}: the board has no Python with NumPy and ai-edge-litert. Installing a runtime into its cache")

    def script(receive: str) -> str:
        return f"""
            {prepare}
            cd "$base" && mkdir -p runtime && cd runtime || exit 97
            for old in .part-*; do
                [ -e "$old" ] && ! kill -0 "${{old##*-}}" 2> /dev/null && rm -rf "$old"
            done
            part=".part-$$"
            trap 'rm -rf "$part"' EXIT
            trap 'exit 98' HUP INT TERM PIPE
            mkdir "$part" || exit 97
            {receive}
            [ -e "$part/tree/{runtime.START}" ] || exit 97
            [ -d "{archive.name}" ] || mv "$part/tree" "{archive.name}" || exit 97
            echo {INSTALLED.decode()}
        """

    try:
        with tempfile.TemporaryDirectory(prefix="tfq-runtime-", ignore_cleanup_errors=True) as directory:
            push = transport.push
            if push is None:
                with open(archive.path, "rb") as file:
                    receive = RECEIVE.format(sha256=archive.sha256)
                    status, stdout, stderr = run_script(
                        transport, script(receive), stdin=file.fileno(), secs=INSTALL_SECS
                    )
            else:
                tree = Path(directory) / "tree"
                tree.mkdir()
                subprocess.run(["tar", "-xzf", archive.path, "-C", tree], check=True)
                status, stdout, stderr = _push(transport.shell(script(AWAIT_PUSH)), lambda part: push(tree, part))
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"{name}: cannot install the runtime on the board: {error}") from error
    if INSTALLED not in stdout.split():
        text = last_lines(stderr) or f"exit code {status}"
        raise BackendError(
            f"{name}: cannot install the runtime ({archive.path.stat().st_size:,} bytes packed) on the board: "
            f"{text}. Check that the board has disk space for it",
            got=text,
        )


def _push(command: Sequence[str], push: Callable[[str], Sequence[str]]) -> tuple[int, bytes, str]:
    """Run a script with `AWAIT_PUSH`, and the command that copies the files while it waits.

    Returns:
        The script's exit code, its stdout, and its stderr followed by the output of the command.
    """
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(INSTALL_SECS, process.kill)
        timer.start()
        try:
            line, errors = process.stdout.readline(), ""
            while line and not line.startswith(PART):  # a login shell may print text
                line = process.stdout.readline()
            answer = b""
            if line:
                copied = subprocess.run(
                    push(line[len(PART) :].decode().strip()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,  # adb prints errors to stdout
                    timeout=INSTALL_SECS,
                )
                errors = copied.stdout.decode(errors="replace")
                answer = b"" if copied.returncode else PUSHED + b"\n"
            stdout = process.communicate(answer)[0]
        finally:
            timer.cancel()
            process.kill()
        stderr.seek(0)
        return process.wait(), stdout, stderr.read().decode(errors="replace") + errors
