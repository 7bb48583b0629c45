"""The cluster log: text conversion, JSON, duplicates, and the merge of all nodes' logs."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.messages import MAX_TIME, LogEntry
from pmxcfs.status import cluster_log, log_ring
from pmxcfs.status.cluster_log import DEFAULT_COUNT, INFO, ClusterLog, digest, json_text
from pmxcfs.text import printable


def compose(log: ClusterLog, text: str = "text", **changes: Any) -> LogEntry:
    known = {"ident": "root@pam", "tag": "test", "priority": INFO, "pid": 42, "time": 1000}
    return log.compose(text, **{**known, **changes})


def entries(log: ClusterLog, **selection: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(log.render(**selection))["data"]
    return found


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text!~", "plain text!~"),
        ('say "hello"', r"say \"hello\""),
        ("a\nb\tc\x00\x7f", "a#010b#009c#000#127"),
        ("\N{LATIN SMALL LETTER U WITH DIAERESIS}\N{EURO SIGN}", r"\u00fc\u20ac"),
        ("\N{PILE OF POO}!", "!"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), "??"),
        (r"\u00fc", r"\u00fc"),
        ("", ""),
    ],
)
def test_text_becomes_printable_ascii(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert expected.isascii()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (rb"\u00e4 \"q\" \\ \/ \n", 'ä "q" \\ / \n'),
        (rb"\ back", r"\ back"),
        (rb"C:\users", r"C:\users"),
        (b"ends in \\", "ends in \\"),
        (rb"\\" + b"\\", "\\\\"),
        (rb"\ud83d\ude00", "\N{GRINNING FACE}"),
        (rb"\ud83d alone, \ude00 alone", r"\ud83d alone, \ude00 alone"),
        (rb"\u00g1", r"\u00g1"),
        (b'a bare "quote"', 'a bare "quote"'),
        (b"\x01\n", "#001#010"),
        (b"\xff\xc3\xa4", "?ä"),
        (b"cut at\0a NUL", "cut at"),
    ],
)
def test_text_of_other_nodes_is_shown_as_valid_json(stored: bytes, shown: str) -> None:
    assert json.loads(f'"{json_text(stored)}"') == shown


@given(st.binary(max_size=200))
def test_any_bytes_are_valid_json_without_lone_surrogates(stored: bytes) -> None:
    text = json_text(stored)
    assert text.isascii()
    json.loads(f'"{text}"').encode()


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_printable_text_comes_back(text: str) -> None:
    text = text.replace("\\", "/")
    assert json.loads(f'"{json_text(printable(text).encode())}"') == re.sub(
        "[\0-\x1f\x7f]", lambda found: f"#{ord(found[0]):03d}", replace_what_is_lost(text)
    )


def replace_what_is_lost(text: str) -> str:
    kept = "".join(character for character in text if ord(character) < 0x10000)
    return re.sub("[\ud800-\udfff]", "?", kept)


# Composing


def test_digests_are_those_of_the_original() -> None:
    assert digest(b"node2") == 0xE70015C220D1A877
    assert digest(b"root@pam") == 0xBF69A5DBF95BB61


def test_an_entry_has_everything_of_its_author() -> None:
    log = ClusterLog("n\xf6de")
    entry = compose(log, 'say "\xe4"', ident="\xfc@pam", tag="t\n", priority=3, pid=7, time=9)
    assert entry == LogEntry(
        uid=1,
        time=9,
        node_digest=digest("n\xf6de".encode()),
        ident_digest=digest("\xfc@pam".encode()),
        pid=7,
        priority=3,
        node=rb"n\u00f6de",
        ident=rb"\u00fc@pam",
        tag=b"t#010",
        message=rb"say \"\u00e4\"",
    )


@pytest.mark.parametrize("unit", ["x", '"', "\xe4", r"\u00e4", "\n"])
def test_a_long_message_is_cut_between_escapes(unit: str) -> None:
    entry = compose(ClusterLog("node1"), unit * 4096)
    stored = printable(unit).encode()
    step = 1 if unit == "\n" else len(stored)  # the digits of a control character are not an escape
    assert log_ring.MAX_ENTRY - step < log_ring.nominal_size(entry) <= log_ring.MAX_ENTRY
    assert (stored * 4096).startswith(entry.message)
    assert len(entry.message) % step == 0


def test_long_names_are_cut() -> None:
    entry = compose(ClusterLog("n" * 300), "text", ident="i" * 300, tag="\xe4" * 300)
    assert (len(entry.node), len(entry.ident), len(entry.tag)) == (254, 254, 252)
    assert log_ring.fits(entry)
    assert entry.ident_digest == digest(b"i" * 300)


def test_our_entries_are_newer_than_each_other_whatever_the_clock_says() -> None:
    log = ClusterLog("node1")
    times = []
    for clock in (1000, 900, 1001):
        entry = compose(log, time=clock)
        assert log.insert(entry)
        times.append(entry.time)
    assert times == [1000, 1000, 1001]


def test_a_restart_within_a_second_loses_no_entry() -> None:
    before, after = ClusterLog("node1"), ClusterLog("node1")
    for _ in range(3):
        before.insert(compose(before))
    after.merge([before.state()])
    entry = compose(after)
    assert (entry.uid, entry.time) == (1, 1001)
    assert after.insert(entry)


def test_times_do_not_exceed_32_bits() -> None:
    log = ClusterLog("node1")
    assert log.insert(compose(log, time=MAX_TIME + 5))
    assert compose(log, time=5).time == MAX_TIME


def test_a_new_log_has_one_entry() -> None:
    log = ClusterLog("node1")
    log.begin(pid=299, time=1795367931)
    assert entries(log) == [
        {
            "uid": 1,
            "time": 1795367931,
            "pri": 6,
            "tag": "cluster",
            "pid": 299,
            "node": "node1",
            "user": "root",
            "msg": "starting cluster log",
        }
    ]


# Inserting and rendering


def test_the_newest_entry_comes_first() -> None:
    log = ClusterLog("node1")
    assert entries(log) == []
    for text in ("one", "two"):
        log.insert(compose(log, text))
    assert [entry["msg"] for entry in entries(log)] == ["two", "one"]


def test_at_most_fifty_entries_are_shown() -> None:
    log = ClusterLog("node1")
    revisions = {log.revision}
    for _ in range(DEFAULT_COUNT + 7):
        log.insert(compose(log))
        revisions.add(log.revision)
    assert [entry["uid"] for entry in entries(log)] == list(range(DEFAULT_COUNT + 7, 7, -1))
    assert len(entries(log, most=3)) == 3
    assert len(revisions) == DEFAULT_COUNT + 8


def test_the_entries_of_one_user() -> None:
    log = ClusterLog("node1")
    for ident in ("root@pam", "\xe4@pve", "root@pve", "\xe4@pve"):
        log.insert(compose(log, ident=ident))
    assert [entry["uid"] for entry in entries(log, user="\xe4@pve")] == [4, 2]
    assert [entry["uid"] for entry in entries(log, user="\xe4@pve", most=1)] == [4]
    assert entries(log, user="nobody") == []


def test_an_entry_that_is_not_newer_is_dropped() -> None:
    log, peer = ClusterLog("node1"), ClusterLog("node2")
    first, second, third = compose(peer), compose(peer), compose(peer, time=999)
    assert log.insert(second)
    revision = log.revision
    assert not any(log.insert(entry) for entry in (second, first, third))
    assert log.revision == revision
    assert log.insert(compose(log, time=1))  # the order is per node


@pytest.mark.expect_log("dropped a cluster log entry of 4097 bytes")
def test_an_entry_that_is_too_long_is_dropped() -> None:
    log = ClusterLog("node1")
    full = compose(ClusterLog("node2"), "x" * 4096)
    assert not log.insert(full._replace(message=full.message + b"x"))
    assert not log.insert(full._replace(tag=b"t" * 255, message=b""))
    assert log.insert(full)


def test_a_flood_of_senders_does_not_grow_the_table() -> None:
    log = ClusterLog("node1")
    sample = compose(log)
    for number in range(cluster_log.MAX_SENDERS + 10):
        assert log.insert(sample._replace(node_digest=number))
    assert len(log._newest) <= cluster_log.MAX_SENDERS
    assert not log.insert(sample._replace(node_digest=number))


# Merging


def logs(count: int, length: int) -> list[ClusterLog]:
    made = [ClusterLog(f"node{number}") for number in range(1, count + 1)]
    for time in range(length):
        for log in made:
            log.insert(compose(log, f"{time}", time=time))
    return made


def test_all_nodes_have_the_same_after_a_merge() -> None:
    nodes = logs(3, 50)
    states = [log.state() for log in nodes]
    for number, log in enumerate(nodes):
        log.merge(states[number:] + states[:number])
    results = {log.share() for log in nodes}
    assert len(results) == 1
    assert len(list(nodes[0])) == 150
    assert nodes[0].state() == nodes[0].share()
    nodes[0].merge([log.state() for log in nodes])
    assert {nodes[0].share()} == results


def test_merged_entries_are_duplicates() -> None:
    one, two = logs(2, 5)
    late = compose(two, time=100)
    one.merge([one.state(), two.state()])
    assert one.insert(late)
    assert not one.insert(late)
    before = compose(one, time=1)
    assert before.time == 4


def test_entries_inserted_after_the_state_are_kept() -> None:
    one, two = logs(2, 5)
    states = [one.state(), two.state()]
    late = [compose(one, f"late {number}", time=50) for number in range(2)]
    for entry in late:
        one.insert(entry)
    one.merge(states)
    assert [entry["msg"] for entry in entries(one, most=3)] == ["late 1", "late 0", "4"]
    assert not any(one.insert(entry) for entry in late)


def test_the_newest_entries_win_when_there_is_no_room_for_all() -> None:
    nodes = logs(3, 1000)
    one = nodes[0]
    one.merge([log.state() for log in nodes])
    times = [entry.time for entry in one]
    used = sum(map(log_ring.occupied_size, one))
    assert times == sorted(times, reverse=True)
    assert times[0] == 999
    assert len(times) > 1300
    assert (
        log_ring.SIZE - 8 - log_ring.MAX_ENTRY <= used < log_ring.SIZE - 8 - log_ring.MAX_ENTRY + 88
    )


def test_old_entries_that_the_cluster_has_no_room_for_do_not_come_back() -> None:
    one, *others = logs(3, 3)
    for other in others:
        for time in range(1000, 3000):
            other.insert(compose(other, "x" * 100, time=time))
    states = [one.state(), *(other.state() for other in others)]
    late = compose(one, "late", time=5)
    one.insert(late)
    one.merge(states)
    assert next(iter(one)) == late
    assert [entry for entry in one if entry.node == b"node1"] == [late]
