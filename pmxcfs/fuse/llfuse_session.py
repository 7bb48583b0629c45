"""The session through llfuse: its main loop, its workers, and its structures.

llfuse supports one mount per process. Its global lock is held while a handler runs, so it is the
tree's lock. Any exception but a FUSEError would end its main loop, and with it the mount.
Contract: docs/spec/session.md; docs/spec/fuse.md, "Stopping" and "Waiting".
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llfuse

from pmxcfs.errors import StartError
from pmxcfs.fuse.attributes import Attributes, Requester, Statistics, Wanted
from pmxcfs.fuse.handlers import RECENT_LISTINGS, Handlers, Listing
from pmxcfs.fuse.notifier import NotificationChannel
from pmxcfs.fuse.session import BACKGROUND, CONGESTED, OwnMount, channel_of
from pmxcfs.fuse.workers import Workers
from pmxcfs.host.process import end_llfuse_main

LISTED_AT_ONCE = 256  # names per readdir; more than fit into the kernel's one-page buffer
_NS = 10**9  # nanoseconds per second
OPTIONS = (
    "default_permissions",
    "allow_other",
    "nosuid",
    "nodev",
    "fsname=/dev/fuse",
    "nonempty",  # files below the mountpoint give a warning, not an error
    "big_writes",
    "atomic_o_trunc",  # the open has O_TRUNC, so that a rewrite of a file is one change
)

_Listing = list[tuple[bytes, llfuse.EntryAttributes, int]]


class LlfuseSession:
    """A session through llfuse, with *workers* threads."""

    name = "llfuse"
    lock = llfuse.lock

    def __init__(self, *, workers: int) -> None:
        self.waits = self._workers = Workers(workers, lock_released=llfuse.lock_released)
        self._finished = threading.Event()  # llfuse.main has returned

    def mount(self, handlers: Handlers, mountpoint: Path) -> None:
        """Mount on *mountpoint*. Raises StartError."""
        before, self._mount = _fuse_descriptors(), OwnMount(mountpoint)
        logging.getLogger("llfuse").addFilter(_is_worth_logging)
        options = [*OPTIONS, *_room_for(self._workers.count)]
        try:
            llfuse.init(Operations(handlers, self._workers), str(mountpoint), options)
        except RuntimeError as error:
            raise StartError(f"can't mount on {mountpoint}: {error}") from None
        (self._descriptor,) = _fuse_descriptors() - before
        self._mount.note()
        self._workers.attach(self._descriptor)

    def notification_channel(self) -> NotificationChannel:
        """Return the functions that write notifications to the session's descriptor."""
        return channel_of(self._descriptor)

    def serve(self) -> None:
        """Serve requests until ``end`` or an unmount. Blocks; call it without the tree's lock."""
        try:
            # The kernel may end the session so, and libfuse knows ENODEV only.
            with contextlib.suppress(ConnectionAbortedError):
                llfuse.main(workers=self._workers.count, handle_signals=True)
        finally:
            self._finished.set()

    def end(self) -> None:
        """Make ``serve`` return, which may not have begun yet."""
        with self.lock:
            self._workers.close()
        end_llfuse_main(threading.main_thread().ident or 0, self._finished)

    def was_aborted(self) -> bool:
        """Tell whether the kernel has ended the session without an unmount, once it was served."""
        return self._mount.was_aborted()

    def close(self) -> None:
        """Detach the mount, if it is there, and end the session.

        libfuse's own unmount goes by the path: it would detach what another process has mounted
        there since.
        """
        self._mount.detach(self._descriptor)
        llfuse.close(unmount=False)


class Operations(llfuse.Operations):
    """The handlers, as llfuse wants them; llfuse answers other requests with ENOSYS."""

    def __init__(self, handlers: Handlers, workers: Workers) -> None:
        super().__init__()
        self._handlers = handlers
        self._workers = workers
        self._prepared = PreparedListings()

    def _call(self, name: str, *arguments: object, context: Any = None) -> Any:
        """Call a handler; with a *context*, the request tells who has made it."""
        requester = None if context is None else Requester(context.pid, context.uid)
        try:
            return self._handlers.call(name, arguments, requester)
        except BaseException as error:  # noqa: BLE001, as it would end the mount
            raise llfuse.FUSEError(self._handlers.errno_of(name, error)) from None

    def _change(self, name: str, *arguments: object, context: llfuse.RequestContext) -> Any:
        """Call a handler that gets to know who has made the request."""
        requester = Requester(context.pid, context.uid)
        try:
            return self._handlers.call(name, (*arguments, requester), requester)
        except BaseException as error:  # noqa: BLE001, as it would end the mount
            raise llfuse.FUSEError(self._handlers.errno_of(name, error)) from None

    def lookup(
        self, parent: int, name: bytes, context: llfuse.RequestContext
    ) -> llfuse.EntryAttributes:
        return _attributes(self._call("lookup", parent, name, context=context))

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        for node, count in forgotten:
            self._handlers.forget(node, count)

    def getattr(self, node: int, context: llfuse.RequestContext) -> llfuse.EntryAttributes:
        return _attributes(self._call("getattr", node, context=context))

    def setattr(
        self,
        node: int,
        wanted: llfuse.EntryAttributes,
        fields: llfuse.SetattrFields,
        handle: int | None,
        context: llfuse.RequestContext,
    ) -> llfuse.EntryAttributes:
        given = _wanted(wanted, fields)
        return _attributes(self._change("setattr", node, given, handle, context=context))

    def readlink(self, node: int, context: llfuse.RequestContext) -> bytes:
        target: bytes = self._call("readlink", node, context=context)
        return target

    def statfs(self, context: llfuse.RequestContext) -> llfuse.StatvfsData:
        return _statistics(self._call("statfs", context=context))

    def opendir(self, node: int, context: llfuse.RequestContext) -> int:
        handle: int = self._call("opendir", node, context=context)
        return handle

    def readdir(self, handle: int, offset: int) -> _Listing:
        return self._prepared.part(self._call("readdir", handle, offset), offset)

    def releasedir(self, handle: int) -> None:
        self._call("releasedir", handle)
        self._workers.park()  # as no process waits for the reply

    def fsyncdir(self, handle: int, datasync: bool) -> None:
        self._call("fsyncdir", handle)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: llfuse.RequestContext
    ) -> tuple[int, llfuse.EntryAttributes]:
        handle, made = self._change("create", parent, name, mode, flags, context=context)
        return handle, _attributes(made)

    def mknod(
        self, parent: int, name: bytes, mode: int, device: int, context: llfuse.RequestContext
    ) -> llfuse.EntryAttributes:
        return _attributes(self._change("mknod", parent, name, mode, device, context=context))

    def mkdir(
        self, parent: int, name: bytes, mode: int, context: llfuse.RequestContext
    ) -> llfuse.EntryAttributes:
        return _attributes(self._change("mkdir", parent, name, mode, context=context))

    def unlink(self, parent: int, name: bytes, context: llfuse.RequestContext) -> None:
        self._change("unlink", parent, name, context=context)

    def rmdir(self, parent: int, name: bytes, context: llfuse.RequestContext) -> None:
        self._change("rmdir", parent, name, context=context)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        context: llfuse.RequestContext,
    ) -> None:
        self._change("rename", parent, name, new_parent, new_name, context=context)

    def link(
        self, node: int, new_parent: int, new_name: bytes, context: llfuse.RequestContext
    ) -> None:
        self._call("link", node, new_parent, new_name, context=context)

    def open(self, node: int, flags: int, context: llfuse.RequestContext) -> int:
        handle: int = self._change("open", node, flags, context=context)
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes:
        content: bytes = self._call("read", handle, offset, size)
        return content

    def write(self, handle: int, offset: int, data: bytes) -> int:
        used: int = self._call("write", handle, offset, data)
        return used

    def flush(self, handle: int) -> None:
        self._call("flush", handle)

    def fsync(self, handle: int, datasync: bool) -> None:
        self._call("fsync", handle)

    def release(self, handle: int) -> None:
        self._call("release", handle)
        self._workers.park()  # as no process waits for the reply

    def stacktrace(self) -> None:
        """Refuse llfuse's attribute for debugging, as every extended attribute."""
        raise llfuse.FUSEError(errno.ENOSYS)


class PreparedListings:
    """The replies to readdir, made once for each listing of the handlers.

    A listing is a list that does not change; that of a directory is the same until a name does.
    """

    def __init__(self) -> None:
        self._recent: dict[int, tuple[Listing, _Listing]] = {}  # by id of the first, kept so alive

    def part(self, rows: Listing, offset: int) -> _Listing:
        """Return what follows *offset* in *rows*, as far as the kernel may take it."""
        end = min(offset + LISTED_AT_ONCE, len(rows))
        _, prepared = self._recent.get(id(rows)) or self._begin(rows)
        for number, (name, node, kind, _) in enumerate(rows[len(prepared) : end], len(prepared)):
            prepared.append((name, _listed(node, kind), number + 1))
        return prepared[offset:end]

    def _begin(self, rows: Listing) -> tuple[Listing, _Listing]:
        if len(self._recent) >= RECENT_LISTINGS:
            self._recent.clear()
        begun = self._recent[id(rows)] = (rows, [])
        return begun


def _attributes(found: Attributes) -> llfuse.EntryAttributes:
    result = llfuse.EntryAttributes()
    result.st_ino = found.node
    result.st_mode = found.mode
    result.st_nlink = found.nlink
    result.st_gid = found.gid
    result.st_size = found.size
    result.st_blocks = (found.size + 511) // 512
    result.st_atime_ns = result.st_mtime_ns = result.st_ctime_ns = found.time * _NS
    result.entry_timeout, result.attr_timeout = found.name_seconds, found.seconds
    return result


def _listed(node: int, kind: int) -> llfuse.EntryAttributes:
    result = llfuse.EntryAttributes()
    result.st_ino, result.st_mode = node, kind
    return result


def _wanted(wanted: llfuse.EntryAttributes, fields: llfuse.SetattrFields) -> Wanted:
    return Wanted(
        mode=wanted.st_mode if fields.update_mode else None,
        uid=wanted.st_uid if fields.update_uid else None,
        gid=wanted.st_gid if fields.update_gid else None,
        size=wanted.st_size if fields.update_size else None,
        mtime=wanted.st_mtime_ns // _NS if fields.update_mtime else None,
    )


def _statistics(found: Statistics) -> llfuse.StatvfsData:
    result = llfuse.StatvfsData()
    result.f_bsize = result.f_frsize = found.block_size
    result.f_blocks = found.blocks
    result.f_bfree = result.f_bavail = found.free_blocks
    result.f_files = found.entries
    result.f_ffree = result.f_favail = found.free_entries
    result.f_namemax = found.name_size
    return result


def _room_for(parked: int) -> Sequence[str]:
    """Return mount options for *parked* unanswered RELEASEs beside other background requests."""
    return f"max_background={BACKGROUND + parked}", f"congestion_threshold={CONGESTED + parked}"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for errors of llfuse at an unmount, and for one that is raised as well.

    The first is about a reply to an aborted request.
    """
    text = record.getMessage()
    return not text.endswith(
        (
            f"failed with {os.strerror(errno.ENOENT)}",
            "terminated with exception, aborting processing",
        )
    )


def _fuse_descriptors() -> set[int]:
    """Return this process's descriptors of /dev/fuse, as llfuse does not expose its own."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == "/dev/fuse":
                found.add(int(link.name))
    return found
