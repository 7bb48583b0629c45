"""Builds the C extensions, and finds the folders; all else about the package is in pyproject.toml.

Each ``.pyx`` below ``pmxcfs`` becomes one extension, and so does each ``.py`` with a ``.pxd``
beside it, which gives the types of what runs for every change. Environment variables change the
build:

PMXCFS_DEBUG=1     no optimization, debug symbols, C assertions, annotated HTML in build/cython
PMXCFS_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer; run with libasan preloaded
PMXCFS_COVERAGE=1  line tracing, so that coverage.py sees the lines of the .pyx files

PMXCFS_NO_EXTENSIONS=1 leaves them out, for an editable install: `make build` compiles them itself.
"""

import functools
import os
import subprocess
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from Cython.Compiler import ExprNodes, Nodes
from setuptools import Extension, find_packages, setup

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wsign-compare",
    "-Werror=conversion",
    # Functions that Python calls get arguments that they need not use; Cython 0.29 says so.
    "-Wno-unused-parameter",
]

# The C libraries that an extension is linked with, by their names for pkg-config.
LIBRARIES = {
    "_cserror": ["libcorosync_common"],
    "_cpg": ["libcpg"],
    "_corosync": ["libquorum", "libcmap", "libcfg"],
    "_librrd": ["librrd"],
    "_qb": ["libqb"],
    "_qbclient": ["libqb"],
}

OPTIMIZED = ["-O2", "-g"]
DEBUG = ["-O0", "-g3", "-UNDEBUG"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def is_on(toggle: str) -> bool:
    """Tell whether an environment variable asks for a variant of the build."""
    return os.environ.get(toggle, "0") not in ("", "0")


def compiler_flags() -> list[str]:
    """Return the flags for the compiler, warnings included."""
    # Python's own headers, some of which Cython includes, have conversions that gcc warns of.
    flags = [*WARNINGS, "-isystem", sysconfig.get_path("include")]
    flags += DEBUG if is_on("PMXCFS_DEBUG") else OPTIMIZED
    if is_on("PMXCFS_SANITIZE"):
        flags += [*SANITIZERS, "-O1", "-fno-omit-frame-pointer"]
    return flags


def linker_flags(module: str) -> list[str]:
    """Return what the linker needs for one extension."""
    flags = SANITIZERS.copy() if is_on("PMXCFS_SANITIZE") else []
    if libraries := LIBRARIES.get(module):
        flags += subprocess.check_output(["pkg-config", "--libs", *libraries], text=True).split()
    return flags


def sources() -> list[Path]:
    """Return what is compiled."""
    package = Path("pmxcfs")
    typed = [path.with_suffix(".py") for path in package.rglob("*.pxd")]
    return sorted([*package.rglob("*.pyx"), *[path for path in typed if path.exists()]])


def extension(source: Path) -> Extension:
    """Describe the extension made from one source; its module's name is its path."""
    tracing: list[tuple[str, str | None]] = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
    return Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        extra_compile_args=compiler_flags(),
        extra_link_args=linker_flags(source.stem),
        define_macros=tracing if is_on("PMXCFS_COVERAGE") else [],
    )


def extensions() -> list[Extension]:
    """Translate the .pyx files to C and describe what is to be compiled."""
    if is_on("PMXCFS_NO_EXTENSIONS"):
        return []
    return cythonize(  # type: ignore[no-untyped-call,no-any-return]
        [extension(source) for source in sources()],
        # Cython.Coverage looks for the C file beside its source.
        build_dir=None if is_on("PMXCFS_COVERAGE") else "build/cython",
        annotate=is_on("PMXCFS_DEBUG"),
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,  # of .py files; theirs are mypy's, and the .pxd has ours
            "nonecheck": True,  # None where an object should be raises, instead of a crash
            "binding": True,  # signatures that stubtest can compare with the .pyi
            "autotestdict": False,  # no __test__ in the modules: nobody runs doctests of them
            "linetrace": is_on("PMXCFS_COVERAGE"),
        },
    )


def drop_annotation(_function: Any, _scope: Any, annotation: Any) -> Any:
    """Return what is compiled instead of an annotation: None."""
    none: Any = ExprNodes.NoneNode
    return annotation and none(annotation.pos)


def warn_unless_wrong(warn: Callable[..., None], position: Any, message: str, *level: int) -> None:
    """Pass a warning of Cython on to *warn*, unless it is one that is always wrong."""
    if not message.startswith("noexcept clause is ignored for function returning Python object"):
        warn(position, message, *level)


if version("Cython").startswith("0."):
    # It lets a module compute its annotations when it is imported, and does not know how to
    # subscript a class, so that list[int] would be an error there.
    function: Any = ExprNodes.PyCFunctionNode
    function.analyse_annotation = drop_annotation

if version("Cython").startswith("3.0."):
    # It takes a function of a .py file for one with the clause noexcept, if a .pxd gives it an
    # object as its result and thus no clause.
    nodes: Any = Nodes
    nodes.warning = functools.partial(warn_unless_wrong, nodes.warning)

# From the package's own folder: beside it, in build and run, are Debian trees and mounts.
folders = [f"pmxcfs.{name}" for name in find_packages("pmxcfs")]
setup(license="Apache-2.0", packages=["pmxcfs", *folders], ext_modules=extensions())
