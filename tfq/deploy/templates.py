# SPDX-License-Identifier: Apache-2.0
"""The sources that bundles are made from: files in `sources/`, in which generated values replace marked parts.

Each file there is valid in its language, so that compilers and linters read it as it is. A part that depends on the
model stands between two comment lines:

    /* tfq:begin values */
    static const float SCALE = 1.0f;
    /* tfq:end values */
"""

import re
from collections.abc import Mapping
from pathlib import Path

_SOURCES = Path(__file__).with_name("sources")


def read_source(name: str) -> str:
    """Return the text of a file in `sources/`, such as "c/model.c"."""
    return (_SOURCES / name).read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a source in which the marked parts hold generated text. The marking lines are removed.

    Args:
        text: The source.
        values: Name of a part -> the text that replaces it, without the last line break.

    Raises:
        ValueError: The names of the marked parts are not those of `values`.
    """
    marked = re.findall(r"^.*\btfq:begin (\w+).*\n", text, re.MULTILINE)
    if sorted(marked) != sorted(values):
        raise ValueError(f"the source has the parts {sorted(marked)}, expected {sorted(values)}")
    for name, value in values.items():
        part = re.compile(rf"^[^\n]*\btfq:begin {name}\b[^\n]*\n.*?^[^\n]*\btfq:end {name}\b[^\n]*\n", re.M | re.S)
        text = part.sub(lambda _, value=value: value + "\n" if value else "", text)  # type: ignore[misc]
    return text


def c_string(text: str) -> str:
    """Return text as a string literal of C, with its UTF-8 bytes: bytes outside of printable ASCII as octal escapes."""
    result = []
    for byte in text.encode("utf-8", "surrogateescape"):
        character = chr(byte)
        if character in '"\\?':
            result.append("\\" + character)
        elif 32 <= byte < 127:
            result.append(character)
        else:
            result.append(f"\\{byte:03o}")
    return f'"{"".join(result)}"'
