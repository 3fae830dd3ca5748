#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run the code cells of a notebook in one namespace, and store what they print and show in the notebook.

    python docs/execute_notebook.py examples/quick_start.ipynb
    python docs/execute_notebook.py examples/quick_start.ipynb --check     run the cells, write nothing

It needs neither Jupyter nor a kernel. As in Jupyter, the value of the last expression of a cell is shown: as HTML if it
has `_repr_html_`, and as text. The cells run in a temporary directory. A path of this machine in an output is an error.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook (nbformat 4) with the outputs of its code cells, run in the current directory.

    Raises:
        SystemExit: An output has a path of this machine.
    """
    module = types.ModuleType("__main__")
    count, cells = 0, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = outputs_of("".join(cell["source"]), module.__dict__, count)
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    text = json.dumps([cell.get("outputs") for cell in cells])
    for path in {str(ROOT), os.getcwd(), os.path.expanduser("~"), tempfile.gettempdir()} - {"/"}:
        if path in text:
            raise SystemExit(f"an output has the path {path}")
    return {**notebook, "cells": cells}


def outputs_of(source: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell, and return its outputs: the text that it prints, then the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        text = value.to_text() if hasattr(value, "to_text") else repr(value)
        data = {"text/plain": text.splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = [value._repr_html_()]
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
    return outputs


def main() -> None:
    """Run the notebook that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    path = arguments.notebook.resolve()
    notebook = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        result = executed(notebook)
    if not arguments.check:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
