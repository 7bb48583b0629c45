"""The cluster log's text and its JSON."""

import json

import pytest

from pmxcfs.clusterlog import SHOWN, ClusterLog, LogEntry, printable


def entry(uid: int, message: str = "text") -> LogEntry:
    return LogEntry(uid, 1000 + uid, 6, "cluster", 42, "node1", "root", message)


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


def test_the_newest_entry_comes_first() -> None:
    log = ClusterLog()
    assert json.loads(log.render()) == {"data": []}
    for uid in (1, 2):
        log.add(entry(uid, printable(f'"{uid}"')))
    assert json.loads(log.render()) == {
        "data": [
            {
                "uid": uid,
                "time": 1000 + uid,
                "pri": 6,
                "tag": "cluster",
                "pid": 42,
                "node": "node1",
                "user": "root",
                "msg": f'"{uid}"',
            }
            for uid in (2, 1)
        ]
    }


def test_at_most_fifty_entries_are_shown() -> None:
    log = ClusterLog()
    revisions = {log.revision}
    for uid in range(SHOWN + 7):
        log.add(entry(uid))
        revisions.add(log.revision)
    shown = json.loads(log.render())["data"]
    assert [item["uid"] for item in shown] == list(range(SHOWN + 6, 6, -1))
    assert len(json.loads(log.render(most=3))["data"]) == 3
    assert len(revisions) == SHOWN + 8
