"""The rules that a reader of one file can't check: layers, sizes, exception clauses, imports."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PACKAGE = ROOT / "pmxcfs"

# A module imports from its own folder, in which there are no circles, or from folders of lines
# above; folders of one line are strangers to one another. "" is what stands in pmxcfs itself.
LINES = (
    "",
    "host tree",
    "dfsm storage status",
    "replica",
    "vfs",
    "cluster fuse ipc rrd",
    "daemon",
    "cli",
)
START = "__main__"  # what `python -m pmxcfs` runs stands above all lines, though it is in none
# What all nodes must compute alike: given the same input, at any time and on any machine.
PURE = ("tree", "dfsm", "status")
CLOCKS = ("time", "datetime", "random", "secrets", "uuid")
THREADS_AND_FILES = ("threading", "os", "socket", "pathlib", "subprocess", "fcntl")
NOT_PURE = frozenset([*CLOCKS, *THREADS_AND_FILES])
# The folders that may know each of these.
OWNERS = {"sqlite3": "storage", "llfuse": "fuse", "rrdtool": "rrd"}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

CYTHON_IMPORT = re.compile(
    r"^from (pmxcfs[\w.]*) c?import (\w+)|^c?import (pmxcfs[\w.]*)", re.MULTILINE
)
# A C function: what stands before its name, the name, and what stands behind its parameters.
C_FUNCTION = re.compile(
    r"^[ ]*c(?:p)?def[ ]+(?!class\b|extern\b|struct\b|enum\b|packed\b)"
    r"(?P<before>(?:[\w.]+[ *]+)*)(?P<name>\w+)\((?P<parameters>[^()]*)\)(?P<after>[^:=\n]*)"
    r"(?P<end>:?)$",
    re.MULTILINE,
)
CYTHON_FUNCTION = re.compile(
    r"^([ ]*)(?:def|c?p?def)\b(?! class)[^=\n]*?\([^()]*\)[^:=\n]*:$", re.MULTILINE
)
PYTHON_TYPES = frozenset(["object", "bytes", "bytearray", "str", "list", "dict", "tuple", "set"])


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx"))


def packages() -> list[Path]:
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def dotted(path: Path) -> str:
    """Return the name by which a module is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def folder_of(module: str) -> str:
    """Return the folder of a dotted name, "" for what stands in pmxcfs itself."""
    return module.split(".")[1] if module.count(".") == 2 else ""


def line_of(folder: str) -> int:
    """Return the line that a folder stands on."""
    (found,) = [number for number, names in enumerate(LINES) if folder in names.split(" ")]
    return found


def python_files() -> list[Path]:
    folders = [PACKAGE, ROOT / "tests", ROOT / "bench"]
    return [ROOT / "setup.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def sources() -> list[Path]:
    return python_files() + sorted(PACKAGE.rglob("*.pyx"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield every module that a file imports, dotted; names taken from a package count as such."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the module in full"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of_cython(text: str) -> Iterator[str]:
    for package, name, module in CYTHON_IMPORT.findall(text):
        yield from (package, f"{package}.{name}") if package else (module,)


def own_imports(path: Path) -> set[str]:
    """Return the modules of ours that a module imports, dotted; those that its types need, too."""
    types = path.with_suffix(".pxd")
    found = set(imports_of_cython(types.read_text())) if types.exists() else set()
    text = path.read_text()
    found |= set(imports_of_cython(text) if path.suffix == ".pyx" else imports_of(ast.parse(text)))
    return found & {dotted(module) for module in modules()} - {dotted(path)}


def is_allowed(importer: str, imported: str) -> bool:
    """Tell whether the table lets one module import another."""
    if importer == f"pmxcfs.{START}":
        return True
    if imported == f"pmxcfs.{START}":
        return False
    source, target = folder_of(importer), folder_of(imported)
    return source == target or line_of(target) < line_of(source)


def test_the_rule_for_imports_refuses_what_it_should() -> None:
    assert is_allowed("pmxcfs.vfs.filesystem", "pmxcfs.tree.guests")
    assert is_allowed("pmxcfs.tree.apply", "pmxcfs.errors")
    assert not is_allowed("pmxcfs.errors", "pmxcfs.tree.apply")
    assert not is_allowed("pmxcfs.storage.database", "pmxcfs.dfsm.machine")  # of one line
    assert not is_allowed("pmxcfs.tree.apply", "pmxcfs.storage.database")


def test_the_table_has_exactly_the_folders_there_are() -> None:
    listed = [folder for line in LINES for folder in line.split(" ")]
    there = [str(package.relative_to(PACKAGE)).replace(".", "") for package in packages()]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_up_the_table(path: Path) -> None:
    assert not [name for name in own_imports(path) if not is_allowed(dotted(path), name)]


@pytest.mark.parametrize("package", packages(), ids=name_of)
def test_no_folder_has_a_circle_of_imports(package: Path) -> None:
    inside = [path for path in modules() if path.parent == package]
    waiting = {dotted(path): own_imports(path) for path in inside}
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & waiting.keys()]
        assert free, f"these import one another: {sorted(waiting)}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_an_underscore_module_is_private_to_its_folder(path: Path) -> None:
    """Those in pmxcfs itself are for all: the user has fixed their place."""
    private = [name for name in own_imports(path) if "._" in name and folder_of(name)]
    assert not [name for name in private if folder_of(name) != folder_of(dotted(path))]


@pytest.mark.parametrize("package", packages(), ids=name_of)
def test_a_folder_is_introduced_by_one_docstring_and_nothing_else(package: Path) -> None:
    body = ast.parse((package / "__init__.py").read_text()).body
    rest = [ast.unparse(node) for node in body[1:]]
    assert ast.get_docstring(ast.Module(body=body, type_ignores=[]))
    assert not [line for line in rest if not line.startswith("__version__ = ")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_foreign_modules_have_few_owners(path: Path) -> None:
    imported = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    folder = folder_of(dotted(path))
    assert not {name for name in imported if OWNERS.get(name, folder) != folder}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_pure_folders_do_without_clocks_threads_and_files(path: Path) -> None:
    if folder_of(dotted(path)) not in PURE:
        return
    text = path.read_text()
    imported = imports_of_cython(text) if path.suffix == ".pyx" else imports_of(ast.parse(text))
    assert not {name.partition(".")[0] for name in imported} & NOT_PURE


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_file_holds_more_than_one_can_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [node.name for node in functions if node_lines(node) > MAX_FUNCTION_LINES]
    assert not long


def node_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.pyx")), ids=name_of)
def test_no_cython_function_is_longer_than_a_screen(path: Path) -> None:
    text = path.read_text()
    heads = list(CYTHON_FUNCTION.finditer(text))
    bodies = [re.match(rf"(?:\n|{head[1]}[ ].*\n)*", text[head.end() + 1 :]) for head in heads]
    long = [
        head[0]
        for head, body in zip(heads, bodies, strict=True)
        if body and (head[0] + body[0].rstrip()).count("\n") >= MAX_FUNCTION_LINES
    ]
    assert heads
    assert not long


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_imports_name_what_they_take(path: Path) -> None:
    assert not [name for name in imports_of(ast.parse(path.read_text())) if name.endswith(".*")]


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_nothing_is_imported_from_a_test(path: Path) -> None:
    imported = imports_of(ast.parse(path.read_text()))
    assert not [name for name in imported if re.search(r"\.test_\w+$|\.test_\w+\.", name)]


def c_functions() -> list[tuple[str, re.Match[str]]]:
    files = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
    return [(path.name, match) for path in files for match in functions_in(path.read_text())]


def functions_in(text: str) -> list[re.Match[str]]:
    """Return the C functions of Cython source, without those that a header of C declares."""
    without_externs = re.sub(r"(?m)^cdef extern .*\n(?:(?:[ ]+.*)?\n)*", "", text)
    return list(C_FUNCTION.finditer(without_externs))


def needs_clause(match: re.Match[str]) -> bool:
    """Tell whether the result is a C value, which can't say by itself that it is an exception."""
    words = [word for word in re.split(r"[ *]+", match["before"]) if word and word != "inline"]
    if not words:
        return False
    is_python = words[-1] in PYTHON_TYPES or words[-1][0].isupper()
    return "*" in match["before"] or not is_python


def test_every_c_function_says_how_exceptions_leave_it() -> None:
    bare = [
        f"{file}: {match['name']}"
        for file, match in c_functions()
        if needs_clause(match) and not re.search(r"\b(except|noexcept)\b", match["after"])
    ]
    assert not bare


def test_every_callback_keeps_exceptions_away_from_c() -> None:
    loose = [
        f"{file}: {match['name']}"
        for file, match in c_functions()
        if "with gil" in match["after"] and "noexcept" not in match["after"]
    ]
    assert not loose


def test_the_rule_for_c_functions_sees_what_it_should() -> None:
    source = (
        "cdef extern from 'x.h':\n    int foreign(int)\n\n"
        "cdef int bare(int a):\n    pass\n"
        "cdef int good(int a,\n              int b) except -1:\n    pass\n"
        "cdef bytes python(self):\n    pass\n"
        "cdef Entry ours(self)\n"
        "cdef const char* pointer(self):\n    pass\n"
        "    cdef int local = call(3)\n"
        "cdef void callback(void* p) with gil:\n    pass\n"
    )
    found = functions_in(source)
    assert " ".join(m["name"] for m in found) == "bare good python ours pointer callback"
    judged = [match["name"] for match in found if needs_clause(match)]
    assert judged == ["bare", "good", "pointer", "callback"]


def compiled_python() -> list[Path]:
    """Return the Python modules that are compiled, by the types in the .pxd beside them."""
    return sorted(p for pxd in PACKAGE.rglob("*.pxd") if (p := pxd.with_suffix(".py")).exists())


@pytest.mark.parametrize("path", compiled_python(), ids=name_of)
def test_what_is_compiled_is_something_that_cython_0_29_can_run(path: Path) -> None:
    """Debian 12 builds with it. It compiles these, but importing the module fails."""
    body = ast.parse(path.read_text()).body
    bases = [base for node in body if isinstance(node, ast.ClassDef) for base in node.bases]
    assert "NamedTuple" not in [base.id for base in bases if isinstance(base, ast.Name)]
    values = [node.value for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
    assert not [value for value in [*bases, *values] if isinstance(value, ast.Subscript)]
