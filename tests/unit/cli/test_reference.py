"""The command line in the parsers, the manual page, the guide and the bash completion: the same."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.cli import completion
from pmxcfs.cli.main import build_creator_parser, build_parser
from tests.places import ROOT

MANUAL = (ROOT / "docs" / "man" / "pmxcfs.8").read_text()
GUIDE = (ROOT / "docs" / "operations.md").read_text()
CONTRACT = (ROOT / "docs" / "spec" / "operations.md").read_text()

OFFLINE = ("fsck", "dump", "export", "import", "checkpoint", "conflicts")
# Options that the pages tell once for a group of commands.
HELP = frozenset(["-h", "--help"])
CLIENT_OPTIONS = {"--json": "", "--ipc-name": "NAME"}
DATABASE_OPTIONS = {"--statedir": "DIR"}


# The parsers


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the commands of ``pmxcfs``, as ``fsck`` and ``ipc get``."""
    return dict(commands_below(build_parser(), ""))


def commands_below(
    parser: argparse.ArgumentParser, path: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"{path}{name}", command
                yield from commands_below(command, f"{path}{name} ")


def options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the options of a parser, each with the name of its value, which may be empty."""
    return {
        option: "" if action.nargs == 0 else str(action.metavar)
        for action in parser._actions
        for option in action.option_strings
    }


def usage(name: str, parser: argparse.ArgumentParser, *, told_elsewhere: frozenset[str]) -> str:
    """Return a command with its arguments, as in ``ipc get [--node NAME] KEY``."""
    words = [name]
    for action in sorted(parser._actions, key=lambda each: not each.option_strings):
        if action.option_strings and not told_elsewhere.intersection(action.option_strings):
            value = "" if action.nargs == 0 else f" {action.metavar}"
            words.append(f"[{action.option_strings[0]}{value}]")
        elif not action.option_strings:
            ends = {None: ("", ""), "?": ("[", "]"), "+": ("", "..."), argparse.PARSER: ("", "")}
            start, end = ends[action.nargs]  # type: ignore[index]  # one of these four
            words.append(f"{start}{action.metavar}{end}")
    return " ".join(words)


def usages() -> set[str]:
    """Return all commands with their arguments, without the options that a group has in common."""
    common = HELP | CLIENT_OPTIONS.keys() | DATABASE_OPTIONS.keys()
    return {usage(name, parser, told_elsewhere=common) for name, parser in commands().items()}


def test_commands_of_a_group_have_its_options() -> None:
    """The pages may tell these options once."""
    for name, parser in commands().items():
        common = DATABASE_OPTIONS if name.startswith(OFFLINE) else CLIENT_OPTIONS
        assert common.items() <= options(parser).items(), name
        assert options(parser).keys() >= HELP, name


def test_create_pmxcfs_db_has_no_options() -> None:
    assert options(build_creator_parser()).keys() == HELP


# The manual page


def printed(line: str) -> str:
    """Return what a line of a manual page prints: its macros concatenate or join the arguments."""
    if line.startswith("."):
        macro, _, rest = line[1:].partition(" ")
        words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
        line = (" " if macro in ("B", "I") else "").join(words)
    line = re.sub(r"\\f[A-Z]", "", line)
    return line.replace("\\-", "-").replace("\\~", " ").replace("\\|", "").strip()


def section(title: str) -> str:
    return re.split(rf"^\.SH {title}\n", MANUAL, flags=re.MULTILINE)[1].partition("\n.SH ")[0]


def tags(text: str) -> list[str]:
    """Return the tags of a section's paragraphs."""
    return [printed(line) for line in re.findall(r"^\.TP\n(.*)$", text, re.MULTILINE)]


def tagged_options(text: str) -> dict[str, str]:
    """Return the options that are tags, each with the name of its value, which may be empty."""
    found = {}
    for tag in tags(text):
        *names, last = tag.split(", ")
        last, _, value = last.partition(" ")
        if last.startswith("-"):
            found.update(dict.fromkeys([*names, last], value))
    return found


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r'.BI \-\-workers " N"', "--workers N"),
        (r'.BR \-d ", " \-\-debug', "-d, --debug"),
        (r".B ipc version", "ipc version"),
        (r'.BR "ipc get" " [" \-\-node " \fINAME\fR] \fIKEY\fR"', "ipc get [--node NAME] KEY"),
        (r".RI [ option ]\~.\|.\|.", "[option] ..."),
    ],
)
def test_lines_of_the_manual_are_read_as_man_prints_them(line: str, text: str) -> None:
    assert printed(line) == text


def test_the_manual_has_each_option_of_the_daemon_and_no_other() -> None:
    assert tagged_options(section("OPTIONS")) == options(build_parser())


def test_the_manual_has_each_command_with_its_arguments_and_no_other() -> None:
    told = [tag for tag in tags(section("COMMANDS")) if not tag.startswith("-")]
    assert sorted(told) == sorted(usages())


def test_the_manual_has_the_common_options_of_each_group() -> None:
    _, asking, offline = section("COMMANDS").split(".SS ")
    assert tagged_options(asking) == CLIENT_OPTIONS
    assert tagged_options(offline) == DATABASE_OPTIONS


def test_the_synopsis_has_each_command_with_all_options() -> None:
    blocks = re.findall(r"(?ms)^\.SY (\w+)\n(.*?)^\.YS$", section("SYNOPSIS"))
    told = [" ".join([name, *map(printed, text.splitlines())]) for name, text in blocks]
    top = {name: parser for name, parser in commands().items() if " " not in name}
    lines = [usage(f"pmxcfs {name}", top[name], told_elsewhere=HELP) for name in top]
    for name in ("ipc", "conflicts"):
        lines[list(top).index(name)] += " [argument] ..."  # those of the question or action
    creator = usage("create_pmxcfs_db", build_creator_parser(), told_elsewhere=HELP)
    assert told == ["pmxcfs [option] ...", *lines, creator]


# The guide and the contract


def rows(page: str, start: str) -> set[str]:
    """Return the code at the beginning of each row of a table that begins with *start*."""
    return set(re.findall(rf"^\| `{start}([^`]*)` \|", page, re.MULTILINE))


def option_rows(page: str) -> dict[str, str]:
    """Return the options of the daemon that a page's table has, with the names of their values."""
    found = {}
    for row in re.findall(r"^\| (`-[^|]*?) (?:\([^|]*\) )?\|", page, re.MULTILINE):
        for option in re.findall(r"`([^`]*)`", row):
            name, _, value = option.partition(" ")
            found[name] = value
    return found


def test_the_guide_has_each_command_with_its_arguments_and_no_other() -> None:
    assert rows(GUIDE, "pmxcfs ") == usages()


def test_the_contract_has_each_offline_command_with_its_arguments() -> None:
    told = {each for each in usages() if each.startswith(OFFLINE)}
    told -= {each for each in told if each.startswith("conflicts")}  # a chapter of their own
    assert rows(CONTRACT, "pmxcfs ") == told


def test_guide_and_contract_have_each_option_of_the_daemon_and_no_other() -> None:
    daemon = options(build_parser())
    assert option_rows(GUIDE) | {"-h": ""} == daemon
    long = {name: value for name, value in daemon.items() if name.startswith("--")}
    flags = dict.fromkeys(["--debug", "--foreground", "--local"], "")
    assert option_rows(CONTRACT) | flags == long
    assert "`pmxcfs [-d|--debug] [-f|--foreground] [-l|--local] [options]`" in CONTRACT


# The bash completion


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "pmxcfs"
    path.write_text(completion.script())
    return path


def completions(script: Path, *words: str, where: Path = ROOT) -> set[str]:
    """Return what bash offers for the last of the words."""
    program = """
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function" "$1" "${@: -1}" "${@: -2:1}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", program, "bash", str(script), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where)
    assert result.stderr == ""
    return set(result.stdout.splitlines()) - {""}


def test_bash_completes_the_options_of_the_daemon(script: Path) -> None:
    assert completions(script, "pmxcfs", "-") == options(build_parser()).keys()
    assert completions(script, "create_pmxcfs_db", "-") == HELP


@pytest.mark.parametrize("name", sorted(commands()))
def test_bash_completes_the_options_of_a_command(name: str, script: Path) -> None:
    found = completions(script, "pmxcfs", "--ipc-name", "x", *name.split(), "-")
    assert found == options(commands()[name]).keys()


def test_bash_completes_the_commands(script: Path) -> None:
    assert completions(script, "pmxcfs", "") == {name for name in commands() if " " not in name}
    for group in ("ipc", "conflicts"):
        names = {name.partition(" ")[2] for name in commands() if name.startswith(f"{group} ")}
        assert completions(script, "pmxcfs", group, "") == names
    questions = completions(script, "pmxcfs", "ipc", "")
    assert completions(script, "pmxcfs", "ipc", "--json", "") == questions
    assert completions(script, "pmxcfs", "ipc", "log", "--priority", "w") == {"warning"}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "my dir").mkdir()
    for name in ("my.db", "my.db-wal", "my.db-shm", "my.db.bak-1796009447", "my.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("pmxcfs", "--mountpoint"),
        ("pmxcfs", "--statedir"),
        ("pmxcfs", "--rundir"),
        ("pmxcfs", "--rrddir"),
        ("pmxcfs", "dump", "--statedir"),
        ("pmxcfs", "export"),
        ("pmxcfs", "import"),
        ("create_pmxcfs_db",),
    ],
)
def test_bash_completes_directories(words: tuple[str, ...], script: Path, places: Path) -> None:
    assert completions(script, *words, "my", where=places) == {"my dir"}


@pytest.mark.parametrize("words", [("fsck",), ("fsck", "--repair"), ("dump",), ("export", "d")])
def test_bash_completes_databases(words: tuple[str, ...], script: Path, places: Path) -> None:
    found = completions(script, "pmxcfs", *words, "my", where=places)
    assert found == {"my dir", "my.db", "my.db.bak-1796009447"}


@pytest.mark.parametrize("option", ["--pidfile", "--corosync-conf", "--rrdcached-socket"])
def test_bash_completes_files(option: str, script: Path, places: Path) -> None:
    found = completions(script, "pmxcfs", option, "my.t", where=places)
    assert found == {"my.txt"}
    assert completions(script, "create_pmxcfs_db", "d", "my.t", where=places) == {"my.txt"}


def test_bash_completes_groups(script: Path) -> None:
    assert completions(script, "pmxcfs", "--group", "roo") == {"root"}


def test_the_daemon_does_not_import_shtab() -> None:
    program = "import sys, pmxcfs.cli.main; sys.exit('shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
