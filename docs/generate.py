# SPDX-License-Identifier: Apache-2.0
"""Fill the generated parts of the documentation: tables from the registries, code from the tests, help of commands.

    python docs/generate.py           rewrite CONTRIBUTING.md and all Markdown files in docs/
    python docs/generate.py --check   write nothing; exit 1 if a file would change

A generated part stands between `<!-- GENERATOR: ARGUMENTS -->` and `<!-- end -->`:

    registry: KIND     a table of the objects of an extension point
    code: FILE NAME    what FILE, or a string in it, holds between `# --8<-- [start:NAME]` and `# --8<-- [end:NAME]`
    help: COMMAND      what `tfq COMMAND --help` prints
    support: TABLE     a table of docs/support_tables.py
    api: GROUP         directives for the API reference of a group of public names in tfq/__init__.py
"""

import ast
import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs"))
_PART = re.compile(r"(<!-- (registry|code|help|support|api): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a Markdown document with its generated parts brought up to date."""
    return _PART.sub(lambda part: part[1] + _GENERATORS[part[2]](*part[3].split()) + part[5], text)


def table_of(kind: str) -> str:
    """Return the Markdown table of an extension point: a row per registered object, with its `columns`, if any."""
    import support_tables

    from tfq import registry

    importlib.import_module(registry.MODULES[kind])
    cells = [
        {
            "name": f"`{entry.name}`",
            "what it is": entry.help,
            **getattr(entry, "columns", {}),
            **(support_tables.layer_columns(entry.name) if kind == "bridged_layer" else {}),
        }
        for entry in registry.entries_of(kind)
    ]
    rows = [list(cells[0]), *(each.values() for each in cells)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]) + "\n"


def support_of(table: str) -> str:
    """Return a table of docs/support_tables.py."""
    import support_tables

    return support_tables.TABLES[table]()


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


def help_of(command: str) -> str:
    """Return the help of a command as Markdown: its description, then a list of flags by section of the config."""
    module = importlib.import_module(f"tfq.pipelines.{command}")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        module.cli([f"tfq {command}", "--help"])
    starts = r"\n\n(?=Flags:\n|[a-z_.]+: .+\n(?:  --|\n)|Exit codes:)"
    description, *groups, exit_codes = re.split(starts, output.getvalue().strip())
    parts = [_description(description.removeprefix(f"tfq {command}: "))]
    for group in groups:
        heading, _, rows = group.partition("\n")
        path, _, subject = heading.partition(": ")
        title = f"{subject[:1].upper()}{subject[1:]} (`{path}`)" if subject else "General"
        parts.append(f"## {title}\n\n{_flags(rows)}".rstrip())
    return "\n\n".join([*parts, " ".join(exit_codes.split())]) + "\n"


def _description(text: str) -> str:
    """Return the text of a command's docstring as Markdown: indented lines are commands, the others paragraphs."""
    paragraphs = []
    for part in text.split("\n\n"):
        if part.startswith("    "):
            lines = "\n".join(line.strip() for line in part.splitlines())
            paragraphs.append(f"```text\n{lines}\n```")
        else:
            paragraphs.append(" ".join(_quoted(part).split()))
    return "\n\n".join(paragraphs)


def _flags(rows: str) -> str:
    """Return the flags of one section of --help as a list; names that a flag accepts are a list inside it."""
    lines: list[str] = []
    for row in rows.splitlines():
        indent, text = len(row) - len(row.lstrip()), row.strip()
        if indent == 2:
            lines.append(f"- `{text}`:")
        elif indent == 8:
            name, _, rest = text.partition(": ")
            lines.append(f"    - `{name}`: {_quoted(rest)}")
        else:
            lines[-1] += f" {_quoted(text)}"
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Return text with flags, patterns and file names that hold a placeholder as code; existing code stays as it is."""
    code = r"--[\[\]\w.]*\w(?:\.\*|=[\w./:]*\w)?|'\*'|[\w./]*<\w+>(?:[\w.<>]*\w)?"
    return re.sub(rf"`[^`]*`|(?<!\w)(?:{code})", lambda part: f"`{part[0].strip('`')}`", text)


def api_of(group: str) -> str:
    """Return a mkdocstrings directive for each public name of a group: the comment above it in tfq/__init__.py."""
    return "".join(
        f"::: {module}.{name}\n    options:\n      heading: tfq.{public}\n      toc_label: {public}\n\n"
        for public, module, name in public_names()[group]
    )


def public_names() -> dict[str, list[tuple[str, str, str]]]:
    """Return group -> (public name, module, name in the module), in the order of tfq/__init__.py."""
    source = (ROOT / "tfq" / "__init__.py").read_text()
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    comments = {
        number: re.split(r"[.,:] ?", line.strip(" #\n"))[0].lower().replace(" ", "_")
        for number, line in enumerate(source.splitlines(), start=1)
        if line.startswith("    # ")
    }
    groups: dict[str, list[tuple[str, str, str]]] = {}
    private: dict[str, tuple[str, str]] = {}
    for node in block.body:
        above = [number for number in comments if number < node.lineno]
        group = comments[max(above)] if above else ""
        if isinstance(node, ast.ImportFrom):
            for item in node.names:
                private[item.name] = (str(node.module), item.name)
                if item.asname:
                    groups.setdefault(group, []).append((item.asname, str(node.module), item.name))
        elif (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Name)
        ):
            groups.setdefault("functions", []).append((node.targets[0].id, *private[node.value.id]))
    return groups


def documents() -> list[Path]:
    """Return every Markdown file that may have generated parts."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


_GENERATORS = {"registry": table_of, "code": code_of, "help": help_of, "support": support_of, "api": api_of}


def main() -> None:
    """Rewrite or check every document; see the module's docstring."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path in documents():
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
