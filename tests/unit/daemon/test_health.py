"""What is said about a node that is not well, by the facts."""

import re

import pytest

from pmxcfs.daemon.health import KINDS, Facts, State, assess, state_of
from tests.places import ROOT

FACTS = [
    ("no-corosync", Facts(is_quorate=False, corosync_error="CS_ERR_TRY_AGAIN", mode="start")),
    ("no-corosync", Facts(is_quorate=False, corosync_error="CS_ERR_LIBRARY", offline=["node2"])),
    ("no-quorum", Facts(is_quorate=False, mode="synced")),
    ("copy", Facts(copy_error="disk full", mode="start", seconds_out_of_sync=30.0)),
    ("out-of-sync", Facts(mode="update", seconds_out_of_sync=2.1)),
    ("synchronizing", Facts(mode="update", seconds_out_of_sync=1.9)),
    ("no-echo", Facts(mode="synced", seconds_without_echo=2.1)),
    ("out-of-sync", Facts(mode="start_sync", seconds_without_echo=9.0, seconds_out_of_sync=9.0)),
    ("refused", Facts(mode="synced", refusal="no delivery in time")),
    ("not-stored", Facts(store_error="disk full")),
    ("not-saved", Facts(save_error="disk full")),
    ("little-space", Facts(free_bytes=0)),
    ("offline", Facts(offline=["node2", "node3"])),
    ("twin", Facts(twins=[77])),
    ("unlisted", Facts(is_unlisted=True)),
    ("host-file", Facts(host_file_error="it has no config_version")),
    ("conflict", Facts(conflicts=["1.db"])),
    ("repaired", Facts(repairs=3)),
    ("metrics", Facts(metrics_error="rrdcached does not answer")),
    ("nearly-full", Facts(content_share=0.91)),
    ("nearly-full", Facts(entries_share=0.91)),
]


@pytest.mark.parametrize(("name", "facts"), FACTS)
def test_each_fact_is_one_finding(name: str, facts: Facts) -> None:
    (finding,) = assess(facts)
    assert finding.name == name
    assert finding.reason
    assert state_of([finding]) is KINDS[name].state


def test_a_host_file_that_corosync_can_not_use_is_the_reason_that_it_is_gone() -> None:
    (finding,) = assess(Facts(corosync_error="CS_ERR_LIBRARY", host_file_fault="it is empty"))
    assert finding.reason == "no connection to corosync, so it is read-only: it is empty"
    assert assess(Facts(host_file_fault="it is empty")) == []  # corosync runs


def test_every_kind_can_be_found() -> None:
    assert {name for name, _ in FACTS} == set(KINDS)


def test_a_node_that_is_well() -> None:
    well = Facts(mode="synced", seconds_without_echo=1.9, content_share=0.9, entries_share=0.9)
    assert assess(well) == []
    assert state_of([]) is State.HEALTHY


def test_what_is_failed_comes_first() -> None:
    found = assess(Facts(offline=["node2"], metrics_error="x", store_error="disk full"))
    assert [finding.name for finding in found] == ["not-stored", "offline", "metrics"]
    assert state_of(found) is State.FAILED
    assert state_of(found[1:]) is State.DEGRADED


@pytest.mark.parametrize("name", KINDS)
def test_an_explanation_is_whole_sentences_and_names_a_chapter(name: str) -> None:
    kind = KINDS[name]
    assert re.fullmatch(r"[A-Z].*\.", kind.meaning)
    assert re.fullmatch(r"[a-z].*[^.]", kind.step)
    chapters = (ROOT / "docs" / "operations.md").read_text()
    assert f"\n## {kind.chapter}\n" in chapters
