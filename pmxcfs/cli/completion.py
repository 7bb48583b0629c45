"""The bash completion of ``pmxcfs`` and ``create_pmxcfs_db``, which shtab makes from their parsers.

``python -m pmxcfs.cli.completion`` prints it: when the Debian package is built, and for users of a
checkout. Only this module needs shtab, and no other imports this module.
"""

import shtab

from pmxcfs.cli.main import build_creator_parser, build_parser

# The functions that pmxcfs.cli.main names. Each gets the word that is to be completed. A database
# may be a copy of one: config.db.bak-TIME, conflicts/TIME.db.
FUNCTIONS = """\
_pmxcfs_directories() { compgen -d -- "$1"; }
_pmxcfs_files() { compgen -f -- "$1"; }
_pmxcfs_database_files() {
    compgen -d -- "$1"
    compgen -f -X '!*.db*' -- "$1" | grep -v -e '-wal$' -e '-shm$' -e '-journal$'
}
_pmxcfs_groups() { compgen -g -- "$1"; }
"""

# In shtab 1.5 the script takes only the first element of this array, which holds all choices.
FIRST_CHOICE = 'current_action_choices_var="${current_action}_choices"'
ALL_CHOICES = 'current_action_choices_var="${current_action}_choices[@]"'


def script() -> str:
    """Return the completion of both programs, to be sourced by bash."""
    parts = (
        shtab.complete(build_parser(), "bash", preamble=FUNCTIONS),
        shtab.complete(build_creator_parser(), "bash"),
    )
    return "\n".join(parts).replace(FIRST_CHOICE, ALL_CHOICES) + "\n"


if __name__ == "__main__":
    print(script(), end="")
