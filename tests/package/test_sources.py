"""Packaged files against the program: unit, manual pages, completion, scripts, versions."""

import argparse
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmxcfs
from pmxcfs.cli.main import build_creator_parser, build_parser
from tests.places import ROOT

DEBIAN = ROOT / "debian"
MANUALS = ROOT / "docs" / "man"
SCRIPTS = ("preinst", "postinst", "postrm", "tests/smoke")


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from parser._actions


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in actions(build_parser()) if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the options of a parser, each with the name of its value, which may be empty."""
    return {
        option: "" if action.nargs == 0 else str(action.metavar)
        for action in actions(parser)
        for option in action.option_strings
    }


def manual(name: str) -> str:
    return (MANUALS / name).read_text()


def tagged_options(text: str) -> dict[str, str]:
    """Return the tagged options of a manual page, each with the name of its value."""
    tags = re.findall(r"^\.TP\n\.\w+ (.*)$", text, re.MULTILINE)
    found = {}
    for tag in tags:
        words = re.sub(r'[",]', " ", tag.replace("\\-", "-")).split()
        names = [word for word in words if word.startswith("-")]
        value = next((word for word in words if word.isupper()), "")
        found.update(dict.fromkeys(names, value))
    return found


def section(text: str, title: str) -> str:
    return re.split(rf'^\.SH "?{title}"?\n', text, flags=re.MULTILINE)[1].partition("\n.SH")[0]


def test_the_manual_has_each_option_and_no_other() -> None:
    assert tagged_options(section(manual("pmxcfs.8"), "OPTIONS")) == options(build_parser())


def test_the_manual_has_each_command() -> None:
    tags = re.findall(r"^\.TP\n\.\w+ (\w+)", section(manual("pmxcfs.8"), "COMMANDS"), re.MULTILINE)
    assert sorted(tags) == sorted(commands())


def test_the_guide_has_each_option() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| (`-.*?) \|", guide, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row)}
    assert told | {"-h"} == set(options(build_parser()))


def test_the_guide_has_each_command() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^\| `pmxcfs (\w+)", guide, re.MULTILINE)) == set(commands())


@pytest.mark.parametrize("page", ["pmxcfs.5", "pmxcfs.8"])
def test_a_manual_page_formats_without_warnings(page: str) -> None:
    command = ["man", "--warnings=all", "--encoding=UTF-8", "-Tutf8", "-Z", str(MANUALS / page)]
    # 80 columns on this terminal; the shell's own width must not matter.
    environment = {**os.environ, "MANWIDTH": "80"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stderr == ""
    assert len(result.stdout) > 1000


def completions(*words: str) -> set[str]:
    """Return the completions that bash offers for the last of the words."""
    line = " ".join(words)
    script = f"""
        source /usr/share/bash-completion/bash_completion
        source {DEBIAN}/completion/pmxcfs
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
        function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function {words[0]} '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "--norc", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stderr == ""
    return set(result.stdout.split())


def test_bash_completes_the_options() -> None:
    assert completions("pmxcfs", "-") == set(options(build_parser()))


def test_bash_completes_the_commands_and_their_options() -> None:
    assert completions("pmxcfs", "") == set(commands())
    for name, parser in commands().items():
        assert completions("pmxcfs", name, "-") == set(options(parser))


@pytest.mark.parametrize("option", ["--mountpoint", "--statedir", "export"])
def test_bash_completes_directories(option: str) -> None:
    assert completions("pmxcfs", option, "deb") == {"debian"}
    assert completions("pmxcfs", option, "Makef") == set()


def test_bash_completes_files() -> None:
    assert completions("pmxcfs", "dump", "Makef") == {"Makefile"}
    assert completions("create_pmxcfs_db", "debian", "Makef") == {"Makefile"}
    assert completions("create_pmxcfs_db", "Makef") == set()


def test_create_pmxcfs_db_has_no_options_to_complete() -> None:
    assert set(options(build_creator_parser())) == {"-h", "--help"}


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
    # The C library comes with any compiler; Debian has llfuse and rrdtool compiled.
    wanted -= {"libc6-dev", "libfuse-dev", "librrd-dev"}
    assert wanted <= set((DEBIAN / "control").read_text().replace(",", "").split())


def variable(makefile: str, name: str) -> list[str]:
    return re.findall(rf"^{name} [:+]= (.*)$", makefile, re.MULTILINE)
