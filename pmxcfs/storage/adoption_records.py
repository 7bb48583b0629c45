"""What the journal says of an adoption: the rows that another node's tree replaces, and the paths.

The new rows are in the database only. So a replay can't go on behind an adoption from the tree
before it; the records are there for whoever wants to know what the adoption has changed.
Contract: docs/spec/storage.md, "Journal".
"""

from collections.abc import Sequence
from itertools import chain

from pmxcfs._core import Entry
from pmxcfs.storage.records import Adopted, Before, encode
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Adoption
from pmxcfs.tree.index import ROOT

MAX_REPLACED = 16 << 20  # bytes of replaced content; of more, none is recorded


def replaced_rows(adoption: Adoption) -> list[bytes]:
    """Return the BEFORE records of all entries that *adoption* deletes or overwrites.

    None if they are too large together. The tree must still be the one before.
    """
    entries = _replaced(adoption)
    if sum(entry.size for entry in entries) > MAX_REPLACED:
        return []
    return [encode(_before(entry)) for entry in entries]


def adopted(adoption: Adoption, *, before: int) -> bytes:
    """Return the ADOPTED record; *before* is the version of the tree that is replaced."""
    new = (to_bytes(adoption.path_of(inode)) for inode in adoption.written if inode != ROOT)
    old = (to_bytes(entry.path) for entry in _replaced(adoption))
    paths = tuple(sorted({*new, *old}))
    return encode(Adopted(before, adoption.root.version, paths))


def _replaced(adoption: Adoption) -> Sequence[Entry]:
    return list(chain(adoption.deleted, adoption.overwritten()))


def _before(entry: Entry) -> Before:
    parent = entry.parent
    assert parent is not None, "an adoption replaces entries of the tree, but not its root"
    return Before(
        is_private=entry.private,
        inode=entry.inode,
        parent=parent.inode,
        version=entry.version,
        writer=entry.writer,
        mtime=entry.mtime,
        type=entry.type,
        size=entry.size,
        offset=0,
        name=to_bytes(entry.name),
        path=to_bytes(entry.path),
        data=entry.stored or b"",
    )
