"""Builds the C extensions, and finds the folders; all else about the package is in pyproject.toml.

Each ``.pyx`` below ``pmxcfs`` becomes one extension, and so does each ``.py`` with a ``.pxd``
beside it, which gives the types of what runs for every change. They are linked into one shared
object, ``pmxcfs/_compiled``, in which ``pmxcfs/_import.py`` finds them: a request runs through some
thirty of them, and takes a tenth longer if each has a file of its own. Environment variables
change the build:

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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from Cython.Compiler import ExprNodes, Nodes
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wsign-compare",
    "-Werror=conversion",
    # Functions that Python calls get arguments that they need not use; Cython 0.29 says so.
    "-Wno-unused-parameter",
]

COMPILED = "pmxcfs._compiled"  # the shared object, and the module in it that lists the others
# The C libraries that it is linked with, by their names for pkg-config.
LIBRARIES = ["libcorosync_common", "libcpg", "libquorum", "libcmap", "libcfg", "libqb"]
# Modules that are left out if a library that they need is missing.
OPTIONAL = {Path("pmxcfs/fuse/_queue.pyx"): "liburing >= 2.3"}
# Extensions that stay shared objects of their own, as a library of theirs brings 40 others.
APART = {"pmxcfs.rrd._librrd": ["librrd"]}

OPTIMIZED = ["-O2", "-g"]
DEBUG = ["-O0", "-g3", "-UNDEBUG"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def is_on(toggle: str) -> bool:
    """Tell whether an environment variable asks for a variant of the build."""
    return os.environ.get(toggle, "0") not in ("", "0")


def compiler_flags() -> list[str]:
    """Return the flags for the compiler, warnings included."""
    # Python's own headers, some of which Cython includes, have conversions that gcc warns of.
    flags = [*WARNINGS, "-isystem", sysconfig.get_path("include"), "-include", "pmxcfs/_cold.h"]
    flags += DEBUG if is_on("PMXCFS_DEBUG") else OPTIMIZED
    if is_on("PMXCFS_SANITIZE"):
        flags += [*SANITIZERS, "-O1", "-fno-omit-frame-pointer"]
    return flags


def linker_flags(libraries: list[str]) -> list[str]:
    """Return what the linker needs for these libraries."""
    flags = SANITIZERS.copy() if is_on("PMXCFS_SANITIZE") else []
    return flags + subprocess.check_output(["pkg-config", "--libs", *libraries], text=True).split()


def sources() -> list[Path]:
    """Return what is compiled."""
    package = Path("pmxcfs")
    typed = [path.with_suffix(".py") for path in package.rglob("*.pxd")]
    found = [*package.rglob("*.pyx"), *[path for path in typed if path.exists()]]
    return sorted(path for path in found if path not in OPTIONAL or has_library(OPTIONAL[path]))


@functools.cache
def has_library(name: str) -> bool:
    """Tell whether a C library can be linked, in a version that will do; say so if not."""
    is_there = subprocess.run(["pkg-config", "--exists", name], check=False).returncode == 0
    if not is_there:
        print(f"{name} is missing: building without what needs it")
    return is_there


def extension(source: Path) -> Extension:
    """Describe the extension made from one source; its module's name is its path."""
    tracing: list[tuple[str, str | None]] = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
    name = ".".join(source.with_suffix("").parts)
    return Extension(
        name,
        [str(source)],
        extra_compile_args=compiler_flags(),
        extra_link_args=linker_flags(APART[name]) if name in APART else [],
        define_macros=tracing if is_on("PMXCFS_COVERAGE") else [],
    )


def listing(names: list[str]) -> Extension:
    """Write the module that tells which modules are in the shared object; describe it."""
    source = Path("build/cython/_compiled.pyx")
    text = f"MODULES = frozenset({sorted(names)!r})\n"
    if not source.exists() or source.read_text() != text:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
    return Extension(COMPILED, [str(source)], extra_compile_args=compiler_flags())


def extensions() -> list[Extension]:
    """Translate the sources to C, and describe the shared objects that are made of them."""
    if is_on("PMXCFS_NO_EXTENSIONS"):
        return []
    described = [extension(source) for source in sources()]
    together = [each.name for each in described if each.name not in APART]
    translated = cythonize(  # type: ignore[no-untyped-call]
        [*described, listing(together)],
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
    parts = [each for each in translated if each.name not in APART]
    compiled = Extension(
        COMPILED,
        [source for part in parts for source in part.sources],
        extra_compile_args=compiler_flags(),
        extra_link_args=linker_flags([*LIBRARIES, *filter(has_library, OPTIONAL.values())]),
        define_macros=parts[0].define_macros,
    )
    return [compiled, *[each for each in translated if each.name in APART]]


class BuildExtensions(build_ext):
    """Compiles several files at a time, and only those that have changed."""

    def build_extensions(self) -> None:
        """Build them all."""
        compile_all = self.compiler.compile

        def compile_one(source: str, *, output_dir: str, **options: Any) -> str:
            target: str = self.compiler.object_filenames([source], output_dir=output_dir)[0]
            if self.force or not is_newer(Path(target), Path(source)):
                # Not in its place, where a compiler that is killed would leave a part of it.
                (made,) = compile_all([source], output_dir=f"{output_dir}/unfinished", **options)
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(made, target)
            return target

        def compile_beside(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(functools.partial(compile_one, **options), sources))

        self.compiler.compile = compile_beside
        super().build_extensions()


def is_newer(target: Path, source: Path) -> bool:
    """Tell whether *target* was made after the last change of *source*."""
    return target.exists() and target.stat().st_mtime > source.stat().st_mtime


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
setup(
    license="Apache-2.0",
    packages=["pmxcfs", *folders],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
)
