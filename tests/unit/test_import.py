"""The compiled modules are found in one shared object; it can be absent, but not damaged."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pmxcfs
from pmxcfs import _compiled
from tests.places import ROOT

HERE = Path(pmxcfs.__file__).parent


def modules_with_types() -> set[str]:
    """Return the modules that have a .pyx, or a .pxd beside their .py."""
    package = ROOT / "pmxcfs"
    typed = [path for path in package.rglob("*.pxd") if path.with_suffix(".py").exists()]
    found = [*package.rglob("*.pyx"), *typed]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found}


def test_all_compiled_modules_but_librrds_are_in_one_shared_object() -> None:
    assert modules_with_types() - {"pmxcfs.rrd._librrd"} == _compiled.MODULES


@pytest.mark.parametrize("name", sorted(_compiled.MODULES))
def test_a_compiled_module_comes_from_the_shared_object(name: str) -> None:
    assert importlib.import_module(name).__file__ == _compiled.__file__


@pytest.mark.parametrize(
    ("content", "outcome"),
    [(None, pmxcfs.__version__), (b"not a library", "ImportError: {path}: file too short")],
    ids=["absent", "damaged"],
)
def test_without_the_shared_object(tmp_path: Path, content: bytes | None, outcome: str) -> None:
    package = tmp_path / "pmxcfs"
    package.mkdir()
    for name in ("__init__.py", "_import.py"):
        (package / name).write_bytes((HERE / name).read_bytes())
    object_ = package / Path(_compiled.__file__).name
    if content is not None:
        object_.write_bytes(content)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pmxcfs; print(pmxcfs.__version__)"
    )
    command = [sys.executable, "-Ic", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout + done.stderr).splitlines()[-1] == outcome.format(path=object_)
