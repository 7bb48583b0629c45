"""Finds the compiled modules, which are together in one shared object.

A request runs through some thirty of them. With a shared object for each, what it touches is spread
over several times as many pages and lines of the processor's caches, and a change takes a tenth
longer.

The shared object is the module ``_compiled``, which lists the others. Without it the modules that
are written in Python run as they are, which is enough to lay out an installation.
Contract: docs/spec/performance.md.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any


class CompiledFinder:
    """Finds *modules*, given by their full names, in the shared object at *path*."""

    def __init__(self, path: str, modules: frozenset[str]) -> None:
        self._path = path
        self._modules = modules

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load the module *name*, or None if it is not one of the modules."""
        if name not in self._modules:
            return None
        return spec_from_file_location(
            name, self._path, loader=ExtensionFileLoader(name, self._path)
        )


def install() -> None:
    """Have the compiled modules found from now on, if they are built.

    Raises ImportError if the shared object can't be loaded, for example for lack of a library.
    """
    try:
        compiled: Any = importlib.import_module("pmxcfs._compiled")
    except ModuleNotFoundError:
        return
    sys.meta_path.insert(0, CompiledFinder(compiled.__file__, compiled.MODULES))
