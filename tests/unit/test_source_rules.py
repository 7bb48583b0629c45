"""The rules that a reader of one file can't check: layers, sizes, exception clauses, imports."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pmxcfs"

# A module imports only from lines above its own. The numbers are those of docs/architecture.md.
LAYERS = (
    (0, "errors text messages settings _content _notify _wal"),
    (0, "_core _cserror _qb"),
    (0, "_cpg _corosync _exchange _sqlite _qbclient"),
    (1, "ring members metrics index roundrobin"),
    (1, "guests locks clusterlog kvstore repair modes"),
    (1, "adoption status rows properties"),
    (2, "privatefiles failures health divergence"),
    (2, "soundness"),
    (2, "connections"),
    (2, "delivery database"),
    (2, "creation tickets door"),
    (2, "effects deadlines election letters"),
    (2, "dfsm"),
    (3, "forks"),
    (3, "replica filesystem statusfiles"),
    (3, "localissuer"),
    (3, "outbox requests"),
    (4, "notifier"),
    (4, "alarm nodes invalidation control log process address publisher watchdog"),
    (4, "checkpointer workers"),
    (4, "mailer tracing"),
    (4, "corosync hostconf cluster issuer ipc rrd"),
    (4, "treegroup statusgroup"),
    (4, "clustering service client"),
    (4, "condition"),
    (4, "fuse"),
    (4, "session"),
    (5, "daemon offline inquiry"),
    (5, "cli"),
    (5, "__main__"),
)
# The modules that may know each of these.
OWNERS = {
    "sqlite3": ("database", "connections", "failures"),
    "llfuse": ("fuse", "session"),
    "rrdtool": ("rrd",),
}
TIME_AND_CHANCE = frozenset(["time", "datetime", "random", "secrets", "uuid"])
FIRST_LAYER_WITH_TIME = 4
FIRST_LAYER_WITH_THREADS_OR_FILES = 2
THREADS_AND_FILES = frozenset(["threading", "os", "socket", "pathlib", "subprocess", "fcntl"])

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

CYTHON_IMPORT = re.compile(r"^from pmxcfs\.(\w+) c?import|^c?import pmxcfs\.(\w+)", re.MULTILINE)
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
    return sorted(path for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyx"))


def python_files() -> list[Path]:
    folders = [PACKAGE, ROOT / "tests", ROOT / "bench"]
    return [ROOT / "setup.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def sources() -> list[Path]:
    return python_files() + sorted(PACKAGE.glob("*.pyx"))


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


def own_imports(path: Path) -> set[str]:
    """Return the modules of ours that a module imports."""
    if path.suffix == ".pyx":
        parts = [part for part in (path, path.with_suffix(".pxd")) if part.exists()]
        found = [pair for part in parts for pair in CYTHON_IMPORT.findall(part.read_text())]
        return {first or second for first, second in found} - {path.stem}
    ours = {module.stem for module in modules()} - {"__init__"}
    dotted = [name.split(".") for name in imports_of(ast.parse(path.read_text()))]
    return {parts[1] for parts in dotted if parts[0] == "pmxcfs" and len(parts) > 1} & ours


def position(module: str) -> int:
    """Return the line of the table that a module stands on."""
    (found,) = [line for line, (_, names) in enumerate(LAYERS) if module in names.split()]
    return found


def layer(module: str) -> int:
    return LAYERS[position(module)][0]


def test_the_table_has_exactly_the_modules_there_are() -> None:
    listed = [name for _, names in LAYERS for name in names.split()]
    assert sorted(listed) == sorted({path.stem for path in modules()} - {"__init__"})


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    if path.stem == "__init__":
        assert not own_imports(path)
        return
    upward = {name for name in own_imports(path) if position(name) >= position(path.stem)}
    assert not upward


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=name_of)
def test_foreign_modules_have_few_owners(path: Path) -> None:
    imported = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    owned = {name for name in imported if path.stem not in OWNERS.get(name, (path.stem,))}
    assert not owned


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=name_of)
def test_lower_layers_do_without_clocks_threads_and_files(path: Path) -> None:
    if path.stem == "__init__":
        return
    imported = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    if layer(path.stem) < FIRST_LAYER_WITH_TIME:
        assert not imported & TIME_AND_CHANCE
    if layer(path.stem) < FIRST_LAYER_WITH_THREADS_OR_FILES and path.stem != "settings":
        assert not imported & THREADS_AND_FILES


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


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.pyx")), ids=name_of)
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


def c_functions() -> list[tuple[str, re.Match[str]]]:
    files = sorted([*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.pxd")])
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
    return sorted(p for pxd in PACKAGE.glob("*.pxd") if (p := pxd.with_suffix(".py")).exists())


@pytest.mark.parametrize("path", compiled_python(), ids=name_of)
def test_what_is_compiled_is_something_that_cython_0_29_can_run(path: Path) -> None:
    """Debian 12 builds with it. It compiles these, but importing the module fails."""
    body = ast.parse(path.read_text()).body
    bases = [base for node in body if isinstance(node, ast.ClassDef) for base in node.bases]
    assert "NamedTuple" not in [base.id for base in bases if isinstance(base, ast.Name)]
    values = [node.value for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
    assert not [value for value in [*bases, *values] if isinstance(value, ast.Subscript)]
