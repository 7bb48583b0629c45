"""Recorded requests of the existing implementation, sent by real clients to the same state."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pmxcfs.errors import IpcError
from pmxcfs.ipc._qbclient import Client
from pmxcfs.messages import LogEntry, SetKey
from pmxcfs.status.cluster_log import json_text
from tests.clients.serving import CClient, Recorded, recorded_requests, recordings, served

COUNTERS = frozenset(["version", "clinfo", "vmlist", "starttime"])


def ask_python(name: str, recorded: Recorded) -> tuple[int, bytes]:
    with Client(name) as client:
        try:
            return 0, client.ask(recorded.id, recorded.request)
        except IpcError as error:
            return -error.errno, b""


def mended(raw: bytes) -> bytes:
    """Return the recorded log as valid JSON: the original does not escape backslashes."""
    return re.sub(rb'"msg": "(.*)"\}', lambda m: b'"msg": "%s"}' % _json(m[1]), raw)


def _json(raw: bytes) -> bytes:
    return json_text(raw).encode()


def meaning(value: Any) -> Any:
    """Return a status file's JSON with each counter and time replaced by its type."""
    if not isinstance(value, dict):
        return value
    return {
        key: type(item) if key in COUNTERS or _is_path(key) else meaning(item)
        for key, item in value.items()
    }


def _is_path(key: str) -> bool:
    return key.endswith((".cfg", ".conf", ".new", ".json", ".cron", ".fw", "-config")) or (
        key.startswith("ha/")
    )


def as_status(raw: bytes) -> Any:
    return meaning(json.loads(raw))


def as_log(raw: bytes) -> Any:
    """Return the log entries; those of the test client without pid and uid, which differ."""
    entries = json.loads(mended(raw))["data"]
    return [
        {key: value for key, value in entry.items() if _is_meant(entry, key)} for entry in entries
    ]


def _is_meant(entry: Mapping[str, Any], key: str) -> bool:
    return entry["tag"] != "test" or key not in ("pid", "uid")


MEANINGS: Mapping[int, Callable[[bytes], Any]] = {
    1: as_status,
    2: as_status,
    3: as_status,
    8: as_log,
    11: json.loads,
    13: json.loads,
}


def assert_same(recorded: Recorded, error: int, response: bytes) -> None:
    assert error == recorded.error
    if recorded.response and recorded.id in MEANINGS:
        read = MEANINGS[recorded.id]
        assert read(response) == read(recorded.response)
    else:
        assert response == recorded.response


@pytest.mark.parametrize("language", ["c", "python"])
def test_every_recorded_request(
    language: str,
    c_client: CClient,
    service: str,
    tmp_path: Path,
    report: Callable[[object], None],
) -> None:
    published: list[Any] = []
    with served(recorded_requests(tmp_path, publish=published), tmp_path, name=service):
        requests = recordings()
        for recorded in requests:
            if language == "c":
                error, response = c_client.ask(service, recorded.id, recorded.request)
            else:
                error, response = ask_python(service, recorded)
            assert_same(recorded, error, response)
    assert len(requests) == 41
    report(f"{len(requests)} of {len(requests)} recorded requests ({language})")
    assert [type(change) for change in published] == [SetKey, SetKey, LogEntry]
    assert published[:2] == [SetKey("mykey", b"value1\0"), SetKey("mykey", b"")]
    assert published[2].message == rb"a \"quoted\" message"
