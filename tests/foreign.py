"""Foreign modules in all places where Python looks for modules, to show that a command is isolated.

A module that is imported says so on stderr. Python without ``-I`` imports some of them before the
first line of a program.
"""

from pathlib import Path

SAYS = "foreign module"
# What the commands import, and what Python imports by itself when it starts.
MODULES = ("argparse", "json", "logging", "sqlite3", "pmxcfs", "sitecustomize", "usercustomize")
SOURCE = f"import posix\nposix.write(2, b'{SAYS} ' + __name__.encode() + b'\\n')\n"


def lay_out(directory: Path, version: str) -> None:
    """Put the modules into a new directory, also as the home of a user with modules of its own.

    *version* is that of the Python that must not import them, such as ``3.11``.
    """
    site = directory / ".local" / "lib" / f"python{version}" / "site-packages"
    site.mkdir(parents=True)
    for place in (directory, site):
        for name in MODULES:
            (place / f"{name}.py").write_text(SOURCE)


def environments(directory: str) -> list[dict[str, str]]:
    """Return environments that lead to the modules in *directory* and in the working directory.

    With the last one Python does not even start, unless it is isolated.
    """
    paths = {"PYTHONPATH": f".:{directory}", "PYTHONSTARTUP": f"{directory}/json.py"}
    home = {"HOME": directory, "PYTHONUSERBASE": f"{directory}/.local", "PYTHONINSPECT": "1"}
    return [{**paths, **home}, home, {"PYTHONHOME": directory}]
