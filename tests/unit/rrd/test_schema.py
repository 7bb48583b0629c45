"""Conversion of metrics to RRD updates, for old, current and newer formats of each type."""

import pytest

from pmxcfs.errors import Invalid
from pmxcfs.rrd.schema import GUEST, NODE, STORAGE, Format, definitions, update_of


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


CASES = [
    # name, live columns, values, file, values kept, unknowns added
    ("pve2-node/node2", ["5000", "0"], 12, "pve-node-9.0/node2", 12, 7),
    ("pve-node-9.0/node2", ["5000", "0"], 19, "pve-node-9.0/node2", 19, 0),
    ("pve-node-10.1/node2", ["5000", "0"], 25, "pve-node-9.0/node2", 19, 0),
    ("pve2.3-vm/100", ["5000", "web", "running", "0"], 10, "pve-vm-9.0/100", 10, 7),
    ("pve-vm-9.0/100", ["5000", "web", "running", "0"], 17, "pve-vm-9.0/100", 17, 0),
    ("pve-vm-12/100", ["5000", "web", "running", "0"], 20, "pve-vm-9.0/100", 17, 0),
    ("pve2-storage/n/local", [], 2, "pve-storage-9.0/n/local", 2, 0),
    ("pve-storage-9.0/n/local", [], 2, "pve-storage-9.0/n/local", 2, 0),
    ("pve-storage-9.1/n/local", [], 3, "pve-storage-9.0/n/local", 2, 0),
]


@pytest.mark.parametrize(
    ("name", "live", "count", "file", "kept", "added"), CASES, ids=[case[0] for case in CASES]
)
def test_each_format(
    name: str, live: list[str], count: int, file: str, kept: int, added: int
) -> None:
    update = update_of(name, ":".join([*live, "1795367000", *numbers(count)]).encode())
    assert update.file == file
    expected = [*numbers(kept), *["U"] * added]
    assert update.values == ":".join(["1795367000", *expected])
    assert len(expected) == len(update.format.columns)


def test_widths() -> None:
    assert [len(form.columns) for form in (NODE, GUEST, STORAGE)] == [19, 17, 2]


@pytest.mark.parametrize("value", ["U", "", "nan", "1 2", "1:2", "0x10", "\xff", "1e5x", "-"])
def test_a_value_that_is_not_a_number_is_unknown(value: str) -> None:
    update = update_of("pve2-storage/n/s", f"1795367000:{value}:7".encode())
    first = "1" if value == "1:2" else "U"
    assert update.values.startswith(f"1795367000:{first}:")


@pytest.mark.parametrize("value", ["1", "-1", "0.25", "3.", "1e5", "1.5e-07", "800000000000"])
def test_numbers_stay_as_they_are(value: str) -> None:
    update = update_of("pve2-storage/n/s", f"1795367000:{value}:7".encode())
    assert update.values == f"1795367000:{value}:7"


@pytest.mark.parametrize(
    ("value", "kept"), [("12", "12"), ("12.75", "12"), ("1e5", "U"), ("x", "U"), ("-3", "-3")]
)
def test_counters_are_whole_numbers(value: str, kept: str) -> None:
    update = update_of("pve-vm-9.0/100", f"0:0:0:0:1795367000:1:2:3:4:5:6:{value}".encode())
    assert update.values.split(":")[7] == kept


@pytest.mark.parametrize("data", [b"", b"0:0:N:1", b"5000:0", b"5000:0:now:1", b"5000:0:-5:1"])
def test_a_text_without_a_time_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid, match="has no time"):
        update_of("pve2-node/node2", data)


@pytest.mark.parametrize("form", [NODE, GUEST, STORAGE])
def test_definitions(form: Format) -> None:
    arguments = definitions(form)
    sources = [argument for argument in arguments if argument.startswith("DS:")]
    assert [source.split(":")[1] for source in sources] == list(form.columns)
    derived = [source.split(":")[1] for source in sources if ":DERIVE:" in source]
    assert derived == [c for c in form.columns if c in ("netin", "netout", "diskread", "diskwrite")]
    assert len([argument for argument in arguments if argument.startswith("RRA:")]) == 8
