"""Open files that are removed, replaced or written, on this node or on another."""

import errno
import mmap
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted, wait_for
from tests.mount.observed import changes, published

pytestmark = pytest.mark.needs_fuse

APPENDED = 300_000  # bytes; the kernel hands over 128 KiB at a time, or less


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted(tmp_path_factory.mktemp("handles"), "--test-control") as daemon:
        daemon.publish_only_on_request()
        yield daemon


@pytest.fixture
def file(mount: Daemon) -> Iterator[Path]:
    """A published file."""
    path = mount.path / "file"
    path.write_bytes(b"published")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def descriptor(file: Path) -> int:
    """A descriptor for reading and writing, with unpublished bytes; the test closes it."""
    opened = os.open(file, os.O_RDWR)
    os.pwrite(opened, b"P", 0)
    return opened


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"another")
    other.rename(file)


@pytest.mark.parametrize("take_away", [remove, replace])
def test_a_removed_file_lives_on_in_its_handle_and_is_not_published(
    mount: Daemon, file: Path, descriptor: int, take_away: Callable[[Path], None]
) -> None:
    take_away(file)
    after = published(mount, "file")
    assert os.pread(descriptor, 100, 0) == b"Published"
    with changes(mount, 0):
        os.pwrite(descriptor, b"more", 9)
        os.ftruncate(descriptor, 12)
        assert os.pread(descriptor, 100, 0) == b"Publishedmor"
        assert os.fstat(descriptor).st_size == 12
        os.fsync(descriptor)
        os.close(descriptor)
    assert published(mount, "file") == after


def test_unpublished_bytes_stay_over_what_another_node_writes(
    mount: Daemon, file: Path, descriptor: int
) -> None:
    mount.control("inject", kind="write", path="file", data="published elsewhere")
    wait_for(lambda: file.read_bytes() == b"Published elsewhere", mount)
    os.close(descriptor)
    assert published(mount, "file") == b"Published elsewhere"
    assert file.read_bytes() == b"Published elsewhere"


def test_the_last_publishing_wins(mount: Daemon, file: Path) -> None:
    with file.open("wb") as writer:
        writer.write(b"mine")
        writer.flush()
        mount.control("inject", kind="write", path="file", data="theirs, longer")
        assert published(mount, "file") == b"theirs, longer"
    assert published(mount, "file") == b"mine"
    wait_for(lambda: file.read_bytes() == b"mine", mount)


def close_fails(descriptor: int) -> int | None:
    """Close a descriptor, which must fail; return the errno."""
    with pytest.raises(OSError) as failure:  # noqa: PT011 - the errno is what counts
        os.close(descriptor)
    return failure.value.errno


def test_a_file_that_another_node_removes_can_not_be_published(
    mount: Daemon, file: Path, descriptor: int
) -> None:
    mount.expect_log("the last writes to file are lost: ENOENT")
    mount.control("inject", kind="delete", path="file")
    assert os.pread(descriptor, 100, 0) == b"Published"
    assert close_fails(descriptor) == errno.ENOENT
    mount.wait_until_notified()
    assert not file.exists()


def test_a_file_that_another_node_replaces_can_not_be_published(
    mount: Daemon, file: Path, descriptor: int
) -> None:
    mount.expect_log("the last writes to file are lost: ESTALE")
    with mount.connect() as control:
        control("inject", kind="create", path="other")
        control("inject", kind="write", path="other", data="theirs")
        control("inject", kind="rename", path="other", to="file")
    assert close_fails(descriptor) == errno.ESTALE
    assert published(mount, "file") == b"theirs"
    wait_for(lambda: file.read_bytes() == b"theirs", mount)


def test_a_file_that_another_node_renames_is_published_at_its_new_path(
    mount: Daemon, file: Path, descriptor: int
) -> None:
    mount.control("inject", kind="rename", path="file", to="renamed")
    os.close(descriptor)
    assert published(mount, "renamed") == b"Published"
    mount.wait_until_notified()
    assert (mount.path / "renamed").read_bytes() == b"Published"


# The kernel computes the offset of an append from a size that may be out of date.


def append_to(path: Path, flags: int = 0) -> int:
    """Open a file for appending."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | flags, 0o640)


def check_content(mount: Daemon, path: Path, content: bytes) -> None:
    """Assert the content of a file, as readers see it and as its size says."""
    mount.wait_until_notified()
    assert path.read_bytes() == content
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"theirs"])
def test_an_append_goes_behind_the_bytes_that_another_node_wrote_meanwhile(
    mount: Daemon, file: Path, theirs: bytes
) -> None:
    descriptor = append_to(file)
    with file.open("rb", buffering=0) as reader:
        mount.control("inject", kind="write", path="file", data=theirs.decode())
        mount.wait_until_notified()
        assert reader.read(1) == b"t"  # now the kernel has the page, and still the old size
        os.write(descriptor, b" and")
        mount.wait_until_notified()
        believed = len(b"published and")  # up to here the kernel answers from its cache
        assert os.pread(reader.fileno(), believed, 0) == (theirs + b" and")[:believed]
    check_content(mount, file, theirs + b" and")
    os.write(descriptor, b" more")
    check_content(mount, file, theirs + b" and more")
    os.close(descriptor)
    assert published(mount, "file") == theirs + b" and more"
    check_content(mount, file, theirs + b" and more")


def test_an_append_by_the_creator_of_a_file_goes_behind_foreign_bytes_too(mount: Daemon) -> None:
    path = mount.path / "appended"
    descriptor = append_to(path, os.O_CREAT | os.O_EXCL)
    mount.control("inject", kind="write", path="appended", data="theirs")
    os.write(descriptor, b" and ours")
    os.close(descriptor)
    assert published(mount, "appended") == b"theirs and ours"
    check_content(mount, path, b"theirs and ours")
    path.unlink()


def test_an_append_that_takes_several_requests_stays_in_one_piece(
    mount: Daemon, file: Path
) -> None:
    data = random.randbytes(APPENDED)
    descriptor = append_to(file)
    mount.control("inject", kind="write", path="file", data="theirs, longer")
    assert os.write(descriptor, data) == len(data)
    check_content(mount, file, b"theirs, longer" + data)
    os.close(descriptor)
    assert published(mount, "file") == b"theirs, longer" + data
    check_content(mount, file, b"theirs, longer" + data)


def test_a_mapping_of_an_appending_descriptor_writes_in_place(mount: Daemon, file: Path) -> None:
    pages = random.randbytes(2 * mmap.PAGESIZE)
    file.write_bytes(pages + b"end")
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND)
    with mmap.mmap(descriptor, 0) as mapped:
        mapped[0:6] = b"mapped"
        mapped[-3:] = b"END"
        mapped.flush()
        os.write(descriptor, b" appended")
    os.close(descriptor)
    content = b"mapped" + pages[6:] + b"END appended"
    check_content(mount, file, content)
    assert published(mount, "file") == content


def test_concurrent_appends_are_not_mixed(mount: Daemon, file: Path) -> None:
    file.write_bytes(b"")
    lines = {writer: [f"{writer} {number}" for number in range(100)] for writer in range(4)}

    def append(writer: int) -> None:
        descriptor = append_to(file)
        for line in lines[writer]:
            os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    with ThreadPoolExecutor() as pool:
        list(pool.map(append, lines))
    found = file.read_text().splitlines()
    by_writer = {writer: [x for x in found if x.startswith(f"{writer} ")] for writer in lines}
    assert by_writer == lines
    assert len(found) == 400


def test_a_name_that_is_created_again_is_another_file(mount: Daemon, file: Path) -> None:
    with file.open("rb", buffering=0) as reader:
        first = os.fstat(reader.fileno()).st_ino
        file.unlink()
        file.write_bytes(b"another")
        assert file.stat().st_ino != first
        assert reader.read() == b"published"


def test_a_kernel_that_has_forgotten_a_file_finds_it_again(mount: Daemon, file: Path) -> None:
    with file.open("r+b", buffering=0) as writer:
        writer.write(b"P")
        file.rename(mount.path / "renamed")
        forget_all_names()
        writer.write(b"U")
        assert (mount.path / "renamed").read_bytes() == b"PUblished"
    assert published(mount, "renamed") == b"PUblished"


def forget_all_names() -> None:
    """Let the kernel drop all unused dentries and inodes."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_a_file_that_is_created_again_has_another_node_id(mount: Daemon, file: Path) -> None:
    assert mount.path.stat().st_ino == 1
    seen = {file.stat().st_ino}
    for _ in range(3):
        file.unlink()
        forget_all_names()
        file.write_bytes(b"again")
        node = file.stat().st_ino
        assert node not in seen
        seen.add(node)


def test_a_mapping_keeps_its_content_when_the_file_is_replaced(mount: Daemon, file: Path) -> None:
    with file.open("rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as pages:
        replace(file)
        assert pages[:] == b"published"
        assert file.read_bytes() == b"another"


def test_a_rewound_directory_lists_its_present_entries(mount: Daemon) -> None:
    directory = mount.path / "rewound"
    directory.mkdir()
    (directory / "first").touch()
    opened = os.open(directory, os.O_RDONLY)
    assert os.listdir(opened) == ["first"]  # the directory is rewound after that
    (directory / "first").rename(directory / "second")
    assert os.listdir(opened) == ["second"]
    os.close(opened)
