# SPDX-License-Identifier: Apache-2.0
"""Fill the generated parts of the documentation: tables from the registries, code from the tests.

    python docs/generate.py           rewrite docs/*.md and CONTRIBUTING.md
    python docs/generate.py --check   write nothing; exit 1 if a file would change

A generated part stands between `<!-- registry: KIND -->` or `<!-- code: FILE NAME -->` and `<!-- end -->`. The code of
NAME is what FILE, or a string in it, holds between `# --8<-- [start:NAME]` and `# --8<-- [end:NAME]`.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PART = re.compile(r"(<!-- (registry|code): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a Markdown document with its generated parts brought up to date."""
    return _PART.sub(lambda part: part[1] + _GENERATORS[part[2]](*part[3].split()) + part[5], text)


def table_of(kind: str) -> str:
    """Return the Markdown table of an extension point: a row per registered object, with its `columns`, if any."""
    from tfq import registry

    importlib.import_module(registry.MODULES[kind])
    cells = [
        {"name": f"`{entry.name}`", "what it is": entry.help, **getattr(entry, "columns", {})}
        for entry in registry.entries_of(kind)
    ]
    rows = [list(cells[0]), *(each.values() for each in cells)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]) + "\n"


def code_of(file: str, name: str) -> str:
    """Return the marked code of a test file as a Markdown code block."""
    source = (ROOT / file).read_text()
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    # A marker in a string is unescaped there; one in the file itself is found last.
    for text in [*(each for each in strings if isinstance(each, str)), source]:
        marked = re.search(rf"# --8<-- \[start:{name}\]\n(.*?)# --8<-- \[end:{name}\]", text, re.DOTALL)
        if marked:
            return f"```python\n{marked[1].strip()}\n```\n"
    raise SystemExit(f"{file}: there is no code marked {name!r}")


_GENERATORS = {"registry": table_of, "code": code_of}


def main() -> None:
    """Rewrite or check every document; see the module's docstring."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path in [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = path.read_text()
        after = filled(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after)
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python docs/generate.py")
    print(f"{'would change' if check else 'changed'}: {', '.join(stale) or 'nothing'}")


if __name__ == "__main__":
    main()
