# SPDX-License-Identifier: Apache-2.0
"""Import the names of a package when they are first used, so that a command loads only the modules that it needs.

The package lists its names in a block `if TYPE_CHECKING:` of `from MODULE import NAME` lines, which type checkers read.
The other branch, hidden from them, has

    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)
"""

import ast
import functools
import importlib
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from types import ModuleType


def names(package: str, loader: InspectLoader) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Args:
        package: The package's `__name__`.
        loader: Its `__loader__`, which has the source.
    """

    @functools.cache
    def modules() -> dict[str, str]:
        """Return {name: module} of the block."""
        tree = ast.parse(loader.get_source(package) or "")
        block = next(node for node in tree.body if isinstance(node, ast.If))
        imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        return {item.name: str(node.module) for node in imports for item in node.names}

    class Package(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute, except if Python sets a submodule that is called like a name of the package."""
            if not (isinstance(value, ModuleType) and name in modules()):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Package

    def get(name: str) -> object:
        # Python itself asks for names like `__path__`.
        if name.startswith("_") or name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(modules())
