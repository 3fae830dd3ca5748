# SPDX-License-Identifier: Apache-2.0
"""Docstrings of the public API are complete: every parameter, field and result has an entry."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("Args", "Attributes", "Examples", "Raises", "Returns", "Yields")


def module_tree(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    return ast.parse(
        (path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py").read_text()
    )


def definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Return the definition of a name, through the modules that import it from each other."""
    tree = module_tree(module)
    for node in ast.walk(tree):
        # A callback is built on first access from the class that has its code and its docstring.
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in (name, f"_{name}Logic"):
            return node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for item in node.names:
                if (item.asname or item.name) == name:
                    return definition(node.module, item.name)
    raise LookupError(f"{module}.{name}")


def public_definitions() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    block = next(node for node in module_tree("tfq").body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {item.name: definition(node.module, item.name) for node in imports for item in node.names}


def entries(docstring: str, section: str) -> list[str]:
    """Return the names that a Google-style section lists."""
    body = re.search(rf"^{section}:\n((?:[ ]{{4,}}.*\n?|\n)+)", docstring + "\n", re.MULTILINE)
    return re.findall(r"^ {4}\*{0,2}(\w+)(?: \(.*?\))?:", body[1], re.MULTILINE) if body else []


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [item for item in (arguments.vararg, arguments.kwarg) if item]
    return [item.arg for item in every if item.arg != "self"]


def fields(cls: ast.ClassDef) -> list[str]:
    """Return the public fields of a dataclass or a named tuple, in order."""
    return [
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_")
    ]


def problems_of_function(function: ast.FunctionDef) -> list[str]:
    docstring = ast.get_docstring(function) or ""
    result = []
    if sorted(entries(docstring, "Args")) != sorted(parameters(function)):
        result.append(f"{function.name}: Args lists {entries(docstring, 'Args')}, not {parameters(function)}")
    returns_value = function.returns is not None and ast.unparse(function.returns) != "None"
    if returns_value != bool(re.search(r"^Returns:$", docstring, re.MULTILINE)):
        result.append(f"{function.name}: Returns")
    return result


def problems_of_class(cls: ast.ClassDef) -> list[str]:
    docstring = ast.get_docstring(cls) or ""
    expected = fields(cls) if not is_config(cls) else []
    constructor = next((node for node in cls.body if getattr(node, "name", "") == "__init__"), None)
    if constructor is not None:
        expected = parameters(constructor)
        docstring += "\n\n" + (ast.get_docstring(constructor) or "")
    missing = set(expected) - {*entries(docstring, "Args"), *entries(docstring, "Attributes")}
    return [f"{cls.name}: {', '.join(sorted(missing))}"] if missing or not docstring.strip() else []


def is_config(cls: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith("Config") for base in cls.bases)


def fields_without_help(cls: ast.ClassDef) -> list[str]:
    """Return the fields of a config that no `setting(default, help)` or `section(cls, help)` declares with a help."""
    result = []
    for node in cls.body:
        if isinstance(node, ast.AnnAssign):
            call = node.value
            documented = (
                isinstance(call, ast.Call)
                and ast.unparse(call.func) in ("setting", "section")
                and len(call.args) == 2
                and ast.unparse(call.args[1]).strip("'\" ")
            )
            if not documented:
                result.append(f"{cls.name}.{node.target.id}")
    return result


PUBLIC = public_definitions()


def test_public_functions_document_every_parameter_and_result():
    functions = [node for node in PUBLIC.values() if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 20
    assert [problem for function in functions for problem in problems_of_function(function)] == []


def test_public_classes_document_every_field():
    classes = [node for node in PUBLIC.values() if isinstance(node, ast.ClassDef)]
    assert len(classes) > 40
    assert [problem for cls in classes for problem in problems_of_class(cls)] == []


def test_every_field_of_a_public_config_has_a_help_text():
    configs = [node for node in PUBLIC.values() if isinstance(node, ast.ClassDef) and is_config(node)]
    assert len(configs) > 15
    assert [field for cls in configs for field in fields_without_help(cls)] == []


def function(docstring: str, signature: str = "a, *, b=1") -> ast.FunctionDef:
    return ast.parse(f'def f({signature}) -> int:\n    """Return.\n\n{docstring}\n    """').body[0]


COMPLETE = "    Args:\n        a: One.\n        b: Two, also\n            note: three.\n\n    Returns:\n        A sum."


@pytest.mark.parametrize(
    ("docstring", "signature", "count"),
    [
        (COMPLETE, "a, *, b=1", 0),
        (COMPLETE, "a", 1),
        (COMPLETE, "a, b, c", 1),
        (COMPLETE.replace("Returns:", "Gives:"), "a, b", 1),
        ("    a: one. b: two.", "a, b", 2),
    ],
)
def test_the_check_of_functions_sees_missing_and_wrong_entries(docstring, signature, count):
    assert len(problems_of_function(function(docstring, signature))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (
            'class A:\n    """Two.\n\n    Attributes:\n        x: One.\n        y: Two.\n    """\n    x: int; y: int',
            0,
        ),
        ('class A:\n    """A pair.\n\n    Attributes:\n        x: One.\n    """\n    x: int\n    y: int', 1),
        ('class A:\n    """A pair: x and y."""\n    def __init__(self, x, y): ...', 1),
        ('class A:\n    """A pair.\n\n    Args:\n        x: One.\n    """\n    def __init__(self, x): ...', 0),
        ("class A:\n    pass", 1),
    ],
)
def test_the_check_of_classes_sees_missing_entries(source, count):
    assert len(problems_of_class(ast.parse(source).body[0])) == count


@pytest.mark.parametrize(
    ("value", "count"),
    [('setting(1, "epochs")', 0), ('setting(1, "")', 1), ("setting(1)", 1), ("1", 1), ('section(B, "more")', 0)],
)
def test_the_check_of_configs_sees_a_missing_help(value, count):
    assert len(fields_without_help(ast.parse(f"class AConfig(Config):\n    x: int = {value}").body[0])) == count


def test_sections_are_those_of_google_style():
    unknown = {
        match
        for node in PUBLIC.values()
        for match in re.findall(r"^([A-Z]\w+):$", ast.get_docstring(node) or "", re.MULTILINE)
        if match not in SECTIONS
    }
    assert unknown == set()


def example_lines_without_prompt(docstring: str) -> list[str]:
    """Return the lines of the section Examples that documentation would not show as code."""
    section = re.search(r"^Examples:\n((?:    .*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    lines = [line.strip() for line in section[1].splitlines()] if section else []
    return [line for line in lines if line and not line.startswith((">>> ", "... "))]


def test_every_line_of_an_example_has_a_prompt():
    bare = {name: example_lines_without_prompt(ast.get_docstring(node) or "") for name, node in PUBLIC.items()}
    assert {name: lines for name, lines in bare.items() if lines} == {}


def test_the_check_of_examples_sees_a_line_without_a_prompt():
    docstring = "Do it.\n\nExamples:\n    >>> a = 1\n    ... + 2\n\n    b = 3\n\nArgs:\n    x: One."
    assert example_lines_without_prompt(docstring) == ["b = 3"]
