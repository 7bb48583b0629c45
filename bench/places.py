"""How each side calls its files.

Ours has the usual paths. The floor answers from a name's first letter, in every directory alike:
``f...`` is a file of 1 KiB, ``F...`` one of 1 MiB, ``d...`` a directory; all others can be created.
So an operation has the same messages on both sides, and as many directories on its paths.
"""

from bench.data import FIRST_VMID, GUESTS, HOME


class Place:
    """A mount with the usual paths: GUESTS configurations of guests in one directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.home = f"{root}/{HOME}"
        self.files = [f"{self.home}/{FIRST_VMID + number}.conf" for number in range(GUESTS)]

    def target(self, number: int) -> str:
        """Return the path of a file that the *number*-th replacement replaces."""
        return self.files[number % GUESTS]

    def temporary(self, target: str, number: int) -> str:
        """Return an unused name, under which *target* is written before it is replaced."""
        return f"{target}.tmp.{number}"

    def new_file(self, number: int) -> str:
        """Return the path of a guest that does not exist."""
        return f"{self.home}/{FIRST_VMID + GUESTS + number}.conf"

    def new_other_file(self, number: int) -> str:
        """Return the path of a file that does not exist and is no guest's."""
        return f"{self.home}/new{number}.cfg"

    def new_directory(self, number: int) -> str:
        """Return the path of a directory that does not exist."""
        return f"{self.home}/directory{number}"


class FloorPlace(Place):
    """A mount of a floor."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.home = f"{root}/d/d/d"
        self.files = [f"{self.home}/f{number}" for number in range(GUESTS)]

    def target(self, number: int) -> str:
        """Return another one each time: a floor forgets renames, which costs messages later."""
        return f"{self.home}/f{GUESTS + number}"

    def temporary(self, target: str, number: int) -> str:
        return f"{self.home}/xt{number}"

    def new_file(self, number: int) -> str:
        return f"{self.home}/xf{number}"

    def new_directory(self, number: int) -> str:
        return f"{self.home}/xd{number}"
