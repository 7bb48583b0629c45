"""Rules for the source files: layers, imports, sizes, words, exception clauses of C functions.

The files are parsed or searched, not imported. Each rule that works by a pattern has a test beside
it that shows what the pattern finds and what it does not.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PACKAGE = ROOT / "pmxcfs"

# The layers, lowest first. A module may import from its own folder, without import cycles, and from
# folders of earlier lines; never from another folder of its own line. "" means pmxcfs itself.
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
START = "__main__"  # run by `python -m pmxcfs`; it may import from every line
# Folders whose results depend on their input alone: all nodes must compute the same.
PURE = ("tree", "dfsm", "status")
CLOCKS = ("time", "datetime", "random", "secrets", "uuid")
THREADS_AND_FILES = ("threading", "os", "socket", "pathlib", "subprocess", "fcntl")
NOT_PURE = frozenset([*CLOCKS, *THREADS_AND_FILES])
# The only folder that may import each of these modules.
OWNERS = {"sqlite3": "storage", "llfuse": "fuse"}

# Words that an earlier version used for concepts that have a standard term; the standard term is in
# the glossary of docs/development.md.
JARGON = re.compile(
    r"doors?|hush(es|ed|ing)?|mailers?|letters?|flights?|board(s|ed|ing)?|hollow|carriers?"
)
# Directly behind one of these the word is a standard term: in flight, lower-case letter.
TERMS = {
    "flight": ("in",),
    "letter": ("case", "capital"),
    "letters": ("case", "capital", "ascii"),
}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # a part of a snake_case or CamelCase name too

# Names with an underscore that are public by Python's documentation.
PUBLIC_UNDERSCORES = frozenset(["_replace", "_asdict", "_fields", "_make", "_exit"])

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

CYTHON_IMPORT = re.compile(
    r"^from (pmxcfs[\w.]*) c?import (\w+)|^c?import (pmxcfs[\w.]*)", re.MULTILINE
)
# The first lines of a C function, in groups: the result type, the name, the parameters, the rest.
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
    """Return the folder that holds the module with this dotted name, "" for pmxcfs itself."""
    return module.split(".")[1] if module.count(".") == 2 else ""


def line_of(folder: str) -> int:
    """Return the index in LINES of the line that names a folder."""
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
    """Yield the dotted name of every module that a file imports.

    ``from a import b`` yields both ``a`` and ``a.b``, as ``b`` may be a module.
    """
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
    """Return the dotted names of the pmxcfs modules that a module and its .pxd import."""
    types = path.with_suffix(".pxd")
    found = set(imports_of_cython(types.read_text())) if types.exists() else set()
    text = path.read_text()
    found |= set(imports_of_cython(text) if path.suffix == ".pyx" else imports_of(ast.parse(text)))
    return found & {dotted(module) for module in modules()} - {dotted(path)}


def is_allowed(importer: str, imported: str) -> bool:
    """Tell whether LINES lets one module import another, both given by their dotted names."""
    if importer == f"pmxcfs.{START}":
        return True
    if imported == f"pmxcfs.{START}":
        return False
    source, target = folder_of(importer), folder_of(imported)
    return source == target or line_of(target) < line_of(source)


def test_the_rule_for_imports_allows_earlier_lines_only() -> None:
    assert is_allowed("pmxcfs.vfs.filesystem", "pmxcfs.tree.guests")
    assert is_allowed("pmxcfs.tree.apply", "pmxcfs.errors")
    assert not is_allowed("pmxcfs.errors", "pmxcfs.tree.apply")
    assert not is_allowed("pmxcfs.storage.database", "pmxcfs.dfsm.machine")  # of one line
    assert not is_allowed("pmxcfs.tree.apply", "pmxcfs.storage.database")


def test_the_lines_name_exactly_the_folders_of_the_package() -> None:
    listed = [folder for line in LINES for folder in line.split(" ")]
    there = [str(package.relative_to(PACKAGE)).replace(".", "") for package in packages()]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_its_folder_and_earlier_lines(path: Path) -> None:
    assert not [name for name in own_imports(path) if not is_allowed(dotted(path), name)]


@pytest.mark.parametrize("package", packages(), ids=name_of)
def test_no_folder_has_an_import_cycle(package: Path) -> None:
    inside = [path for path in modules() if path.parent == package]
    waiting = {dotted(path): own_imports(path) for path in inside}
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & waiting.keys()]
        assert free, f"these import one another: {sorted(waiting)}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_an_underscore_module_is_private_to_its_folder(path: Path) -> None:
    """The underscore modules of pmxcfs itself may be imported from every folder."""
    private = [name for name in own_imports(path) if "._" in name and folder_of(name)]
    assert not [name for name in private if folder_of(name) != folder_of(dotted(path))]


@pytest.mark.parametrize("package", packages(), ids=name_of)
def test_an_init_file_holds_one_docstring_and_nothing_else(package: Path) -> None:
    body = ast.parse((package / "__init__.py").read_text()).body
    rest = [ast.unparse(node) for node in body[1:]]
    assert ast.get_docstring(ast.Module(body=body, type_ignores=[]))
    if package == PACKAGE:  # its version, and where its compiled modules are
        rest = [line for line in rest if not line.startswith("__version__ = ")]
        rest = [line for line in rest if "_install" not in line]
    assert not rest


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_sqlite3_and_llfuse_are_imported_by_one_folder_each(path: Path) -> None:
    imported = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    folder = folder_of(dotted(path))
    assert not {name for name in imported if OWNERS.get(name, folder) != folder}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_pure_folders_import_no_clock_thread_or_file(path: Path) -> None:
    if folder_of(dotted(path)) not in PURE:
        return
    text = path.read_text()
    imported = imports_of_cython(text) if path.suffix == ".pyx" else imports_of(ast.parse(text))
    assert not {name.partition(".")[0] for name in imported} & NOT_PURE


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_file_has_more_than_600_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_no_function_has_more_than_80_lines(path: Path) -> None:
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
def test_no_cython_function_has_more_than_80_lines(path: Path) -> None:
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
def test_there_are_no_star_imports(path: Path) -> None:
    assert not [name for name in imports_of(ast.parse(path.read_text())) if name.endswith(".*")]


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_nothing_is_imported_from_a_test_module(path: Path) -> None:
    imported = imports_of(ast.parse(path.read_text()))
    assert not [name for name in imported if re.search(r"\.test_\w+$|\.test_\w+\.", name)]


def jargon_in(text: str) -> list[tuple[int, str]]:
    """Return the line number and the word for each use of jargon in *text*."""
    found = []
    before = ""
    for match in WORD.finditer(text):
        word = match[0].lower()
        if JARGON.fullmatch(word) and before not in TERMS.get(word, ()):
            found.append((text.count("\n", 0, match.start()) + 1, word))
        before = word
    return found


def package_files() -> list[Path]:
    """Return the source files and the type declarations of the package."""
    suffixes = (".py", ".pyx", ".pxd", ".pyi")
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in suffixes)


@pytest.mark.parametrize("path", package_files(), ids=name_of)
def test_names_comments_and_messages_are_free_of_jargon(path: Path) -> None:
    found = jargon_in(path.read_text())
    assert not found, [f"{name_of(path)}:{line}: {word}" for line, word in found]


def test_the_rule_for_words_finds_parts_of_names_but_no_standard_terms() -> None:
    assert jargon_in("at_the_door\nMailerThread # its letters") == [
        (1, "door"),
        (2, "mailer"),
        (2, "letters"),
    ]
    assert jargon_in("BOARD boarded flight_of left_board") == [
        (1, "board"),
        (1, "boarded"),
        (1, "flight"),
        (1, "board"),
    ]
    assert not jargon_in("in_flight, in\n# flight, keyboard, lower-case letters, indoors")


def helper_files() -> list[Path]:
    """Return the files that tests and benchmarks share: doubles, harnesses, programs."""
    files = sorted(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py"))
    return [path for path in files if not path.name.startswith(("test_", "bench_"))]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC_UNDERSCORES


def names_made_in(tree: ast.AST) -> set[str]:
    """Return what a file defines itself: functions, classes, attributes of self."""
    nodes = list(ast.walk(tree))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    made = {node.name for node in nodes if isinstance(node, functions)}
    return made | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node)
    }


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_uses(tree: ast.AST) -> list[str]:
    """Return the private attributes that a file reads, sets or patches and does not define."""
    made = names_made_in(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_own(node) and node.attr not in made:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("etattr", "delattr")):
            names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
            found += [name for name in names if isinstance(name, str) and is_private(name)]
    return found


@pytest.mark.parametrize("path", helper_files(), ids=name_of)
def test_helpers_use_no_private_attribute_of_the_product(path: Path) -> None:
    assert not private_uses(ast.parse(path.read_text()))


def test_the_rule_for_private_attributes_finds_those_of_other_files() -> None:
    source = (
        "class Double:\n"
        "    def __init__(self, other):\n"
        "        self._mine = other._theirs\n"
        "        other._replace(a=1).__class__\n"
        "    def is_like(self, other):\n"
        "        return self._mine == other._mine and self._inherited\n"
        "patch.setattr(module, '_hook', None)\n"
        "getattr(module, 'public')\n"
    )
    assert private_uses(ast.parse(source)) == ["_hook", "other._theirs"]


def c_functions() -> list[tuple[str, re.Match[str]]]:
    files = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
    return [(path.name, match) for path in files for match in functions_in(path.read_text())]


def functions_in(text: str) -> list[re.Match[str]]:
    """Return the C functions that Cython source defines, without extern declarations."""
    without_externs = re.sub(r"(?m)^cdef extern .*\n(?:(?:[ ]+.*)?\n)*", "", text)
    return list(C_FUNCTION.finditer(without_externs))


def needs_clause(match: re.Match[str]) -> bool:
    """Tell whether the result is a C value: only an except clause tells it from an exception."""
    words = [word for word in re.split(r"[ *]+", match["before"]) if word and word != "inline"]
    if not words:
        return False
    is_python = words[-1] in PYTHON_TYPES or words[-1][0].isupper()
    return "*" in match["before"] or not is_python


def test_every_c_function_with_a_c_result_has_an_exception_clause() -> None:
    bare = [
        f"{file}: {match['name']}"
        for file, match in c_functions()
        if needs_clause(match) and not re.search(r"\b(except|noexcept)\b", match["after"])
    ]
    assert not bare


def test_every_callback_from_c_is_noexcept() -> None:
    loose = [
        f"{file}: {match['name']}"
        for file, match in c_functions()
        if "with gil" in match["after"] and "noexcept" not in match["after"]
    ]
    assert not loose


def test_the_rule_for_c_functions_finds_definitions_with_a_c_result() -> None:
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
    """Return the Python modules that are compiled, which are those with a .pxd beside them."""
    return sorted(p for pxd in PACKAGE.rglob("*.pxd") if (p := pxd.with_suffix(".py")).exists())


@pytest.mark.parametrize("path", compiled_python(), ids=name_of)
def test_compiled_python_avoids_what_cython_0_29_can_not_run(path: Path) -> None:
    """Debian 12 has Cython 0.29. NamedTuple bases and subscripts compile; the import then fails.

    Positional-only parameters do not compile.
    """
    tree = ast.parse(path.read_text())
    body = tree.body
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if node.args.posonlyargs]
    bases = [base for node in body if isinstance(node, ast.ClassDef) for base in node.bases]
    assert "NamedTuple" not in [base.id for base in bases if isinstance(base, ast.Name)]
    values = [node.value for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
    assert not [value for value in [*bases, *values] if isinstance(value, ast.Subscript)]


@pytest.mark.parametrize("path", compiled_python(), ids=name_of)
def test_compiled_python_has_no_numbers_as_texts(path: Path) -> None:
    """What Cython 3.0 makes of ``float("inf")`` has a warning of gcc: use ``math.inf``."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "float"]
    assert not [call for call in named if isinstance(call.args[0], ast.Constant)]


# A cpdef function with one argument that must be given, beside self.
OF_ONE = re.compile(r"cpdef [^\n(=]*?(?P<name>\w+)\((?:self, )?[\w ]*?(?P<argument>\w+)\)")


def functions_of_one(source: str) -> set[tuple[str, str]]:
    """Return the names of the cpdef functions with one argument, and of the argument."""
    found = {(match["name"], match["argument"]) for match in OF_ONE.finditer(source)}
    return {(name, argument) for name, argument in found if argument != "self"}


OF_ONE_ARGUMENT = {
    pair for kind in ("pxd", "pyx") for path in PACKAGE.rglob(f"*.{kind}")
    for pair in functions_of_one(path.read_text())
}  # fmt: skip


def test_functions_with_one_argument_are_found() -> None:
    source = (
        "    cpdef bint refuses(self, double now) except -1\n"
        "cpdef list split(mutation)\n"
        "    cpdef object end(self)\n"
        "    cpdef object refusal(self, Py_ssize_t size=*)\n"
        "    cpdef object failed(self, error, double now)\n"
    )
    assert functions_of_one(source) == {("refuses", "now"), ("split", "mutation")}


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]), ids=name_of
)
def test_no_function_of_one_argument_is_called_by_its_keyword(path: Path) -> None:
    """Cython 0.29 makes functions that take no keyword of them."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    keywords = [
        (getattr(call.func, "attr", getattr(call.func, "id", "")), call.keywords[0].arg)
        for call in calls
        if len(call.keywords) == 1 and not call.args
    ]
    assert not OF_ONE_ARGUMENT.intersection(keywords)
