"""Packaged files against the program: unit, manual pages, scripts, versions."""

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest

import pmxcfs
from tests.places import ROOT

DEBIAN = ROOT / "debian"
MANUALS = ROOT / "docs" / "man"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "tests/smoke")


@pytest.mark.parametrize("page", ["pmxcfs.5", "pmxcfs.8"])
def test_a_manual_page_formats_without_warnings(page: str) -> None:
    command = ["man", "--warnings=all", "--encoding=UTF-8", "-Tutf8", "-Z", str(MANUALS / page)]
    # 80 columns on this terminal; the shell's own width must not matter.
    environment = {**os.environ, "MANWIDTH": "80"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stderr == ""
    assert len(result.stdout) > 1000


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """All directives are known, and all values mean something."""
    unit = tmp_path / "pmxcfs.service"
    text = (DEBIAN / "service").read_text()
    assert "ExecStart=/usr/bin/pmxcfs --foreground\n" in text
    # The program and its manual pages are not installed here.
    text = text.replace("/usr/bin/pmxcfs", "/bin/true")
    unit.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    said = [line for line in result.stderr.splitlines() if "pmxcfs" in line]
    assert (said, result.returncode) == ([], 0)


def test_the_unit_makes_the_mount_visible_to_all_processes() -> None:
    """The unit has no option that gives it a mount namespace of its own (systemd.exec(5))."""
    hiding = re.compile(
        r"^(Protect(?!Clock)|Private|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths|Bind|Root"
        r"|TemporaryFileSystem|MountFlags|MountImages|ProcSubset|DynamicUser|LogNamespace)",
        re.MULTILINE,
    )
    assert not hiding.search((DEBIAN / "service").read_text())


DROP_IN = DEBIAN / "systemd" / "pve-cluster.service.d" / "10-pmxcfs.conf"


def directives(text: str) -> set[str]:
    return set(re.findall(r"^\w+=.*$", text, re.MULTILINE))


def test_the_drop_in_for_the_original_unit_has_the_directives_of_the_unit() -> None:
    """It lacks the order of starts, and the state directory, which the daemon makes itself."""
    unit = (DEBIAN / "service").read_text()
    start, service = unit.partition("[Install]")[0].split("[Service]\n")
    wanted = {line for line in directives(service) if not line.startswith("StateDirectory")}
    wanted |= {line for line in directives(start) if line.startswith("StartLimit")}
    added = directives(DROP_IN.read_text())
    assert wanted <= added
    assert added - wanted == {
        "ExecStartPre=-/usr/bin/systemctl stop pmxcfs.service",
        "PIDFile=",
        "ExecStart=",
        "ExecReload=",
    }


def test_each_line_of_the_unit_that_is_not_obvious_has_a_comment() -> None:
    lines = (DEBIAN / "service").read_text().splitlines()
    obvious = {"Description", "Documentation", "Type", "ExecStart", "Restart", "RestartSec"}
    obvious |= {"StateDirectory", "StateDirectoryMode", "WantedBy", "NoNewPrivileges"}
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if "=" in line
        and not line.startswith("#")
        and line.partition("=")[0] not in obvious
        and not above.startswith("#")
        and not is_within_explained_block(lines, line)
    ]
    assert bare == []


def is_within_explained_block(lines: list[str], line: str) -> bool:
    """Tell whether the paragraph of this line begins with a comment."""
    above = lines[: lines.index(line)][::-1]
    block = list(itertools.takewhile(lambda each: each and not each.startswith("["), above))
    return any(each.startswith("#") for each in block)


@pytest.mark.parametrize("name", sorted(path.name for path in (DEBIAN / "bin").iterdir()))
def test_a_program_ignores_its_user_s_modules_and_variables_and_writes_none(name: str) -> None:
    assert (DEBIAN / "bin" / name).read_text().startswith("#!/usr/bin/python3 -IB\n")
    assert "--no-shebang-rewrite" in (DEBIAN / "rules").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_maintainer_script_is_valid_for_dash(name: str) -> None:
    script = DEBIAN / name
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e" in text
    subprocess.run(["dash", "-n", script], check=True)


def test_all_diversions_are_removed_again() -> None:
    pairs = [
        re.findall(r"^    (?:divert|give_back) (\S+) (\S+)$", text, re.MULTILINE)
        for text in ((DEBIAN / name).read_text() for name in ("preinst", "postrm"))
    ]
    assert pairs[0] == pairs[1]
    assert [path for path, _ in pairs[0]] == [
        "/usr/bin/pmxcfs",
        "/usr/bin/create_pmxcfs_db",
        "/usr/share/man/man8/pmxcfs.8.gz",
    ]


def test_package_and_program_have_one_version() -> None:
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"pmxcfs ({pmxcfs.__version__}) ")


def test_the_package_builds_with_what_the_makefile_installs() -> None:
    control = (DEBIAN / "control").read_text()
    needed = control.partition("Build-Depends:\n")[2].partition("\nStandards")[0]
    names = {line.split()[0].rstrip(",") for line in needed.splitlines()}
    names = names - {"debhelper-compat", "dh-sequence-python3"} | {"debhelper", "dh-python"}
    makefile = (ROOT / "Makefile").read_text()
    assert names <= set(" ".join(variable(makefile, "DEB_PACKAGES")).split())


def test_the_package_builds_with_the_libraries_that_the_checkout_builds_with() -> None:
    makefile = (ROOT / "Makefile").read_text()
    wanted = set(re.findall(r"\blib[\w.-]+-dev\b", " ".join(variable(makefile, "PACKAGES"))))
    # The C library comes with any compiler; Debian has llfuse compiled.
    wanted -= {"libc6-dev", "libfuse-dev"}
    assert wanted <= set((DEBIAN / "control").read_text().replace(",", "").split())


def variable(makefile: str, name: str) -> list[str]:
    return re.findall(rf"^{name} [:+]= (.*)$", makefile, re.MULTILINE)
