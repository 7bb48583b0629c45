"""Listings as llfuse wants them are made once, and have what the handlers' listing has."""

from pmxcfs.fuse.handlers import RECENT_LISTINGS, Listing
from pmxcfs.fuse.llfuse_session import LISTED_AT_ONCE, PreparedListings


def listing(count: int) -> Listing:
    return [(b"%d" % number, 100 + number, 0o100000, None) for number in range(count)]


def test_a_listing_is_given_in_parts_until_its_end() -> None:
    rows, prepared, offset = listing(LISTED_AT_ONCE + 9), PreparedListings(), 0
    found = []
    while part := prepared.part(rows, offset):
        assert len(part) <= LISTED_AT_ONCE
        found += part[:100]  # as many as the kernel has room for
        offset = found[-1][2]
    assert [(name, row.st_ino, row.st_mode) for name, row, _ in found] == [
        (name, node, kind) for name, node, kind, _ in rows
    ]
    assert [number for *_, number in found] == list(range(1, 1 + len(rows)))


def test_a_listing_is_prepared_once_and_another_one_by_itself() -> None:
    prepared, rows, others = PreparedListings(), listing(3), listing(3)
    first = prepared.part(rows, 0)
    assert all(one is other for one, other in zip(first, prepared.part(rows, 0), strict=True))
    assert first[0] is not prepared.part(others, 0)[0]


def test_a_prepared_listing_is_never_taken_for_that_of_a_later_list() -> None:
    prepared = PreparedListings()
    for number in range(3 * RECENT_LISTINGS):
        rows: Listing = [(b"f", number, 0o100000, None)]
        ((_, row, _),) = prepared.part(rows, 0)
        assert row.st_ino == number
