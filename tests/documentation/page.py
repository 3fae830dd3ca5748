# SPDX-License-Identifier: Apache-2.0
"""Run the code of one page of the documentation, as a reader would who copies its blocks one after the other.

    python tests/documentation/page.py docs/quick_start.md

The blocks of a page share this process and the current directory, which holds `model.keras` and `photos/` (project.py).
Python blocks run as they stand. In bash blocks, lines that begin with `tfq` run in this process, which saves the
import of TensorFlow; other lines are errors. Blocks of other languages, and indented ones, are output or data.

HTML comments direct this. Each is in front of a block:

    <!-- not run: REASON -->         the next block is not run
    <!-- run first:                  code that is run and not shown, up to the end of the comment
    x = 1
    -->
    <!-- code: FILE NAME -->         docs/generate.py took the block from a test, which runs it
"""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CODE = re.compile(
    r"^<!-- not run: (?P<reason>.+?) -->\n+"
    r"|^<!-- code: (?P<test>\S+) .+? -->\n+"
    r"|^<!-- run first:\n(?P<hidden>.*?)^-->\n"
    r"|^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)
RUN = ("python", "bash")


class Block(NamedTuple):
    """A block of code.

    Args:
        language: "python" or "bash".
        code: Its text.
        line: The number of its first line in the page.
        reason: Why it is not run; "" if it is.
    """

    language: str
    code: str
    line: int
    reason: str


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of a page that a reader would run, and its hidden ones, in order."""
    reason, end = "", 0
    for match in _CODE.finditer(text):
        if match["reason"] or match["test"]:
            reason, end = match["reason"] or f"{match['test']} runs it", match.end()
            continue
        # A reason applies to the block that follows immediately.
        reason = reason if match.start() == end else ""
        line = text.count("\n", 0, match.start()) + 2
        if match["hidden"]:
            yield Block("python", match["hidden"], line, "")
        elif match["language"] in RUN:
            yield Block(match["language"], match["code"], line, reason)
        reason = ""


def commands_of(code: str) -> list[list[str]]:
    """Return the words of each command of a bash block. Raise ValueError if one does not begin with `tfq`."""
    lines = code.replace("\\\n", " ").splitlines()
    commands = [words for words in (shlex.split(line, comments=True) for line in lines) if words]
    for words in commands:
        if words[0] != "tfq":
            raise ValueError(f"only tfq is run here, not {words[0]!r}: say why with <!-- not run: REASON -->")
    return commands


def run(block: Block, page: Path, names: dict[str, object]) -> None:
    """Run one block. Raise what its code raises, and RuntimeError if a command does not exit with 0."""
    if block.language == "python":
        # Blank lines in front, so that a traceback shows the page's own line numbers.
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
        return
    from tfq.cli import main

    for words in commands_of(block.code):
        sys.argv = words
        try:
            main.main()
        except SystemExit as exit:
            if exit.code:
                raise RuntimeError(f"{shlex.join(words)} ended with exit code {exit.code}") from exit


def run_page(page: Path) -> int:
    """Run all blocks of a page in the current directory. Return their number, or exit with 1 at the first failure."""
    names: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for block in blocks_of(page.read_text()):
        if block.reason:
            print(f"{page}:{block.line}: not run: {block.reason}")
            continue
        try:
            run(block, page, names)
        except Exception:
            traceback.print_exc()
            sys.exit(f"{page}:{block.line}: this {block.language} block failed")
        count += 1
    print(f"{page}: {count} blocks ran")
    return count


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    run_page(Path(sys.argv[1]).resolve())
