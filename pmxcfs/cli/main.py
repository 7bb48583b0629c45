"""The command line: turns arguments into ``Settings`` and runs the daemon, or runs a command.

Opens no file. Imports the module of a command only when that command runs, so ``--help`` and
``--version`` need no extension. A failure is one line on stderr and an exit status of the table in
docs/spec/operations.md, "Exit statuses". Contract: docs/spec/operations.md, "Command line".
"""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn, TextIO

import pmxcfs
from pmxcfs.errors import NoAnswer, PmxcfsError, StartError
from pmxcfs.host.os_errors import PERMISSION, in_words
from pmxcfs.messages import PRIORITIES
from pmxcfs.settings import DATABASE_NAME, PERMISSIONS, SESSIONS, Settings

FAILED = 1  # also: not found, not sound
CANNOT_TELL = 3  # no daemon, no permission, or no answer
WRONG_USAGE = 64
# The exit statuses that a shell gives a command that SIGINT or SIGPIPE has ended.
INTERRUPTED = 130
NO_READER = 141
MAX_SERVICE_NAME = 100  # bytes; the address of a Unix socket has at most 107

_UNITS = {"K": 10, "M": 20, "G": 30}  # powers of 2

# Functions of the bash completion (pmxcfs/cli/completion.py) that list values to choose from.
DIRECTORIES = "_pmxcfs_directories"
FILES = "_pmxcfs_files"
DATABASES = "_pmxcfs_database_files"
GROUPS = "_pmxcfs_groups"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pmxcfs``: the daemon, or the command in the arguments. Return the exit status."""
    return run(build_parser(), argv)


def main_create_database(argv: Sequence[str] | None = None) -> int:
    """Run ``create_pmxcfs_db``; return the exit status."""
    return run(build_creator_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse *argv*, run its action, and print a failure as one line. Return the exit status.

    If nobody reads the output any more, as behind ``| head -1``, end without a message, with the
    status of a command that SIGPIPE has ended. The signal itself stays ignored: the daemon writes
    to pipes and sockets, too.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed by the caller
        from pmxcfs.host.process import open_standard_streams

        open_standard_streams()
    try:
        try:
            arguments = parser.parse_args(argv)
            action: Callable[[argparse.Namespace], int] = arguments.action
            return action(arguments)
        finally:
            _flush(sys.stdout)
    except NoAnswer as error:
        return _fail(parser, str(error), CANNOT_TELL)
    except PmxcfsError as error:
        return _fail(parser, str(error), CANNOT_TELL if error.errno in PERMISSION else FAILED)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return NO_READER
        return _fail(parser, in_words(error), CANNOT_TELL if error.errno in PERMISSION else FAILED)
    except KeyboardInterrupt:
        return _fail(parser, "interrupted", INTERRUPTED)
    finally:
        with contextlib.suppress(OSError):  # nobody reads it, but the status still counts
            _flush(sys.stderr)


def _flush(stream: TextIO) -> None:
    """Write what is buffered. Raises OSError; Python then does not try once more at its end."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), stream.fileno())
        raise


def _fail(parser: argparse.ArgumentParser, message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(f"{parser.prog}: {message}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """A parser that ends the process with WRONG_USAGE on an error."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and *message* on stderr, and end the process."""
        with contextlib.suppress(OSError):
            self.print_usage(sys.stderr)
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(WRONG_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``pmxcfs``."""
    parser = Parser(
        prog="pmxcfs",
        description="Mount the Proxmox VE cluster file system, or work on its database offline.",
        allow_abbrev=False,
    )
    parser.set_defaults(action=run_daemon, json=False)
    parser.add_argument("--version", action="version", version=f"pmxcfs {pmxcfs.__version__}")
    add_mode_options(parser)
    add_history_options(parser)
    add_place_options(parser)
    add_cluster_options(parser)
    add_client_options(parser)
    add_commands(parser)
    return parser


def build_creator_parser() -> argparse.ArgumentParser:
    """Return the parser of ``create_pmxcfs_db``."""
    parser = Parser(
        prog="create_pmxcfs_db",
        description="Make a database FILE that holds the files and directories of DIR.",
        allow_abbrev=False,
    )
    parser.set_defaults(action=import_directory)
    add_directory(parser, "the files and directories to copy")
    file = parser.add_argument(
        "file", metavar="FILE", type=absolute_path, help="the database to make; must not exist"
    )
    complete_with(FILES, file)
    return parser


def add_mode_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the daemon's way to run."""
    group = parser.add_argument_group("how to run")
    group.add_argument("-d", "--debug", action="store_true", help="log every request")
    group.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    group.add_argument(
        "-l", "--local", action="store_true", help="ignore corosync.conf, be quorate alone"
    )
    group.add_argument(
        "--fuse",
        choices=SESSIONS,
        metavar="SESSION",
        default=Settings.fuse,
        help="how to speak with the kernel: uring, native, llfuse, or auto, which is uring where "
        "that is switched on, else native on Linux 5.4 or later (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="with llfuse, threads that answer the kernel (default: 16, at least 5)",
    )
    group.add_argument(
        "--permissions",
        choices=PERMISSIONS,
        metavar="MODE",
        default=Settings.permissions,
        help="whether root's chmod and chown, which change nothing, fail (strict) or succeed "
        "(lenient; default: %(default)s)",
    )
    group.add_argument(
        "--test-control",
        action="store_true",
        help="open RUNDIR/control.sock, through which tests change quorum and inject messages",
    )


def add_history_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is kept of earlier changes."""
    group = parser.add_argument_group("history of changes")
    group.add_argument(
        "--history-size",
        type=byte_count,
        metavar="SIZE",
        default=Settings.history_size,
        help="bytes to keep, with K, M or G behind the number for KiB, MiB or GiB, at most a third "
        "of what is free; 0 keeps none (default: 64M)",
    )
    group.add_argument(
        "--history-age",
        type=positive,
        metavar="DAYS",
        default=Settings.history_age,
        help="days to keep (default: %(default)s)",
    )
    group.add_argument(
        "--history-private",
        action="store_true",
        help="also keep what files below priv hold, readable for root only",
    )


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the daemon's paths and names."""
    group = parser.add_argument_group("where")
    add_path(group, "--mountpoint", Settings.mountpoint, "where to mount")
    add_path(group, "--statedir", Settings.statedir, "directory of the database and its journal")
    add_path(group, "--rundir", Settings.rundir, "directory of restart flag and test socket")
    pidfile = group.add_argument(
        "--pidfile",
        type=absolute_path,
        metavar="FILE",
        help=f"the pid file (default: {Settings.pidfile}; with --rundir: RUNDIR/pmxcfs.pid)",
    )
    complete_with(FILES, pidfile)
    group.add_argument(
        "--nodename",
        type=node_name,
        metavar="NAME",
        help="this node's name, used up to the first dot (default: the host name)",
    )
    owner = group.add_argument(
        "--group",
        default=Settings.group,
        metavar="NAME",
        help="the group of every file (default: %(default)s)",
    )
    complete_with(GROUPS, owner)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that has no effect in local mode."""
    group = parser.add_argument_group("cluster, without effect in local mode")
    add_path(
        group, "--corosync-conf", Settings.corosync_conf, "corosync's configuration file", "FILE"
    )


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for local clients and for metrics."""
    group = parser.add_argument_group("local clients")
    group.add_argument(
        "--ipc-name",
        type=service_name,
        default=Settings.ipc_name,
        metavar="NAME",
        help="the name that local clients connect to (default: %(default)s)",
    )
    add_path(group, "--rrddir", Settings.rrddir, "directory of round-robin databases")
    add_path(group, "--rrdcached-socket", Settings.rrdcached_socket, "rrdcached's socket", "PATH")


def add_path(
    group: argparse._ArgumentGroup, option: str, default: Path, meaning: str, metavar: str = "DIR"
) -> None:
    """Add an option that takes a path; with the metavar DIR, that of a directory."""
    path = group.add_argument(
        option,
        type=absolute_path,
        default=default,
        metavar=metavar,
        help=f"{meaning} (default: %(default)s)",
    )
    complete_with(DIRECTORIES if metavar == "DIR" else FILES, path)


def complete_with(function: str, action: argparse.Action) -> None:
    """Have the bash completion call *function* for the value of an argument.

    shtab looks for the attribute that this sets; nothing else does.
    """
    vars(action)["complete"] = {"bash": function}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands: ``status`` and ``ipc`` ask a running daemon, the others work offline."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        name: str, action: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(action=action)
        return command

    status = add(
        "status",
        show_status,
        "show the daemon's state; exit status: 0 healthy, 1 degraded, 2 failed, 3 can't tell",
    )
    add_client_arguments(status)
    status.add_argument(
        "--explain", action="store_true", help="say what each finding means and what to do"
    )
    ask = add("ipc", ask_daemon, "send the daemon a request, as Proxmox VE's tools do")
    add_client_arguments(ask)
    add_questions(ask)
    fsck = add("fsck", check_database, "check a database, or repair one that no process has open")
    fsck.add_argument(
        "--repair", action="store_true", help="write the repairs (default: only report them)"
    )
    add_database(fsck)
    add_database(add("dump", dump_database, "print the database's entries"))
    export = add("export", export_database, "copy the database's files into a directory")
    add_directory(export, "a new or empty directory")
    add_database(export)
    importer = add("import", import_directory, "make a new database of the files in a directory")
    add_directory(importer, "the files and directories to copy")
    add_database(importer)
    fold = add("checkpoint", write_checkpoint, "write what only the journal has into the database")
    add_state_directory(fold)
    add_ipc_name(fold)
    add_conflicts(
        add("conflicts", handle_conflicts, "see and settle copies of changes that were replaced")
    )


def add_conflicts(parser: argparse.ArgumentParser) -> None:
    """Add what ``conflicts`` can do."""
    add_state_directory(parser)
    actions = parser.add_subparsers(
        dest="conflict_action", title="actions", metavar="ACTION", required=True
    )

    def add(name: str, summary: str, *, has_json: bool = False) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_state_directory(action)
        if has_json:
            action.add_argument(
                "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
            )
        return action

    listing = add("list", "list the copies that nobody has dealt with", has_json=True)
    listing.add_argument("--all", action="store_true", help="also those that are done")
    show = add(
        "show",
        "show when and why a copy was kept, and how its files differ from those of now",
        has_json=True,
    )
    export = add("export", "write the files of a copy into a new or empty directory")
    done = add("done", "mark a copy as done: it is kept, but status no longer shows it")
    for action in (show, export, done):
        action.add_argument("name", metavar="NAME", help="the name that list shows")
    add_directory(export, "a new or empty directory")


def add_client_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that all commands have that ask the daemon."""
    # Without SUPPRESS, a default here would override the same option before the command.
    command.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
    )
    add_ipc_name(command)


def add_ipc_name(command: argparse.ArgumentParser) -> None:
    """Add the option that names the daemon."""
    command.add_argument(
        "--ipc-name",
        type=service_name,
        metavar="NAME",
        default=argparse.SUPPRESS,
        help=f"the daemon's name for local clients (default: {Settings.ipc_name})",
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the questions of ``ipc``."""
    questions = parser.add_subparsers(
        dest="question", title="questions", metavar="QUESTION", required=True
    )

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        question = questions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_client_arguments(question)
        return question

    add("version", "the counters that rise with each change")
    add("members", "the nodes of the cluster")
    add("guests", "the guests and their nodes")
    add("config", "the content of a file").add_argument("path", metavar="PATH")
    get = add("get", "the value of a key of a node")
    get.add_argument("key", metavar="KEY")
    get.add_argument("--node", metavar="NAME", default="", help="default: this node")
    put = add("set", "set a key of this node; an empty value removes it")
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE", help="- for standard input")
    write = add("log", "append an entry to the cluster log")
    write.add_argument("message", metavar="MESSAGE")
    write.add_argument("--user", metavar="NAME", default="root@pam", help="default: %(default)s")
    write.add_argument("--tag", metavar="NAME", default="pmxcfs", help="default: %(default)s")
    write.add_argument(
        "--priority",
        metavar="LEVEL",
        choices=PRIORITIES,
        default="info",
        help=f"{', '.join(PRIORITIES)} (default: %(default)s)",
    )
    read = add("clusterlog", "the newest entries of the cluster log")
    read.add_argument("-n", dest="most", type=positive, default=50, metavar="N", help="default: 50")
    read.add_argument("--user", metavar="NAME", default="", help="only entries of this user")
    add("rrd", "the latest metrics")
    find = add("property", "properties of guests")
    find.add_argument("names", metavar="NAME", nargs="+", type=property_name)
    find.add_argument("--vmid", type=positive, default=0, metavar="N", help="default: all guests")


def add_directory(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add the directory that a command copies from or to."""
    directory = command.add_argument("directory", metavar="DIR", type=absolute_path, help=meaning)
    complete_with(DIRECTORIES, directory)


def add_database(command: argparse.ArgumentParser) -> None:
    """Add the two ways to name the database of an offline command."""
    file = command.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=absolute_path,
        help="the database (default: config.db in the state directory)",
    )
    complete_with(DATABASES, file)
    add_state_directory(command)


def add_state_directory(command: argparse.ArgumentParser) -> None:
    """Add the option for the state directory to a command."""
    statedir = command.add_argument(
        "--statedir",
        metavar="DIR",
        type=absolute_path,
        # Without SUPPRESS, a default here would override a --statedir before the command.
        default=argparse.SUPPRESS,
        help=f"the state directory (default: {Settings.statedir})",
    )
    complete_with(DIRECTORIES, statedir)


def absolute_path(text: str) -> Path:
    """Return the path as an absolute one, without a look at the disk: the daemon changes to /."""
    if not text:
        raise argparse.ArgumentTypeError("the path must not be empty")
    return Path(os.path.abspath(text))


def node_name(text: str) -> str:
    """Return a node's name without its domain."""
    name = text.partition(".")[0]
    if not name or "/" in name:
        raise argparse.ArgumentTypeError(f"not a valid node name: {text!r}")
    return name


def service_name(text: str) -> str:
    """Return a valid IPC name: libqb makes a socket's address and file names of it."""
    if not text or "/" in text or len(os.fsencode(text)) > MAX_SERVICE_NAME:
        raise argparse.ArgumentTypeError(f"not a valid IPC name: {text!r}")
    return text


def byte_count(text: str) -> int:
    """Return a number of bytes, which can end with K, M or G."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"not a number of bytes, as 64M: {text!r}")
    return int(number) << _UNITS.get(unit, 0)


def positive(text: str) -> int:
    """Return a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number of at least 1: {text!r}")
    return int(text)


def property_name(text: str) -> str:
    """Return the name of a property, which starts with a lower-case letter."""
    if not "a" <= text[:1] <= "z":
        raise argparse.ArgumentTypeError(
            f"not the name of a property, which starts with a lower-case letter: {text!r}"
        )
    return text


def settings_from(arguments: argparse.Namespace) -> Settings:
    """Return the daemon's settings, with defaults that depend on the host or on other options."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    given["nodename"] = arguments.nodename or os.uname().nodename.partition(".")[0]
    if not given["nodename"]:
        raise StartError("this host has no name: set the host name or use --nodename")
    if not arguments.pidfile:
        is_default = arguments.rundir == Settings.rundir
        given["pidfile"] = Settings.pidfile if is_default else arguments.rundir / "pmxcfs.pid"
    return Settings(**given)


def run_daemon(arguments: argparse.Namespace) -> int:
    """Run the daemon until a signal or an unmount stops it."""
    from pmxcfs.daemon import daemon

    return daemon.run(settings_from(arguments))


def show_status(arguments: argparse.Namespace) -> int:
    """Run ``status``."""
    from pmxcfs.cli import query

    return query.show_status(arguments)


def ask_daemon(arguments: argparse.Namespace) -> int:
    """Run ``ipc``."""
    from pmxcfs.cli import query

    return query.ask(arguments.question, arguments)


def write_checkpoint(arguments: argparse.Namespace) -> int:
    """Run ``checkpoint``."""
    from pmxcfs.cli import checkpoint

    return checkpoint.checkpoint(arguments)


def handle_conflicts(arguments: argparse.Namespace) -> int:
    """Run ``conflicts``."""
    from pmxcfs.cli import conflicts

    return conflicts.ACTIONS[arguments.conflict_action](arguments)


def database_of(arguments: argparse.Namespace) -> Path:
    """Return the path of the database that an offline command works on."""
    file: Path = arguments.file or arguments.statedir / DATABASE_NAME
    return file


def check_database(arguments: argparse.Namespace) -> int:
    """Run ``fsck``."""
    from pmxcfs.cli import offline

    return offline.fsck(database_of(arguments), repair=arguments.repair)


def dump_database(arguments: argparse.Namespace) -> int:
    """Run ``dump``."""
    from pmxcfs.cli import offline

    return offline.dump(database_of(arguments))


def export_database(arguments: argparse.Namespace) -> int:
    """Run ``export``."""
    from pmxcfs.cli import offline

    return offline.export(database_of(arguments), arguments.directory)


def import_directory(arguments: argparse.Namespace) -> int:
    """Run ``import`` or ``create_pmxcfs_db``."""
    from pmxcfs.cli import offline

    return offline.import_(arguments.directory, database_of(arguments))
