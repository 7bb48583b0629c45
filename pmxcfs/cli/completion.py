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

# The script of shtab 1.5 (Debian 12) takes only the first element of the array of choices, and does
# not split them, as it separates words by line feeds.
CORRECTIONS = {
    'choices_var="${current_action}_choices"': 'choices_var="${current_action}_choices[@]"',
    "${current_action_choices}": "${current_action_choices// /$'\\n'}",
}


def script() -> str:
    """Return the completion of both programs, to be sourced by bash."""
    parts = (
        shtab.complete(build_parser(), "bash", preamble=FUNCTIONS),
        shtab.complete(build_creator_parser(), "bash"),
    )
    text = "\n".join(parts) + "\n"
    for wrong, right in CORRECTIONS.items():
        text = text.replace(wrong, right)
    return text


if __name__ == "__main__":
    print(script(), end="")
