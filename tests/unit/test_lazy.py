# SPDX-License-Identifier: Apache-2.0
"""Packages whose names are imported when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tfq

ROOT = Path(tfq.__file__).parent
PACKAGES = [path.parent.name for path in sorted(ROOT.glob("*/__init__.py")) if "lazy.names" in path.read_text()]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_that_of_its_module(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {item.name: node.module for node in block.body for item in node.names}
    result = importlib.import_module(f"tfq.{package}")
    assert set(imported) == set(result.__all__) == set(dir(result))
    for name, module in imported.items():
        # Some modules have the name of their function, which stays the function after they are imported.
        assert getattr(result, name) is vars(importlib.import_module(module))[name]
    with pytest.raises(AttributeError, match="nothing"):
        result.nothing  # noqa: B018


def test_the_static_audit_loads_no_other_work():
    code = "import sys, tfq.pipelines.audit; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tfq.auditing" in loaded
    unexpected = ("tfq.search", "tfq.deploy", "tfq.conversion", "tfq.analysis", "tfq.tflite.model_metadata")
    assert not [name for name in loaded if name.startswith(unexpected)]
