"""Writeback: publishes the dirty bytes of a file as one change, and reports failures to handles.

A file with unpublished bytes is dirty; the tree holds the bytes in a draft. A writeback takes all
dirty bytes of a file and sends them through the issuer. At its end the file is clean, dirty again,
or its dirty bytes are lost. One writeback of a file runs at a time. If bytes are lost, each handle
that wrote some of them reports the error once, by its next close, fsync or write.

New files that are not saved yet are also tracked here: they are saved with their first content, or
by the timer. A pending file (``pending``) is announced by its first writeback, with its content.

Threads: all methods need the tree's lock, and release it while they wait for the issuer.
Contract: docs/spec/filesystem.md, "Better than before" 1.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterable

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Busy, Failed, NoQuorum, PmxcfsError, Signaled, StoreError
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Rename, Write
from pmxcfs.replica.issuer import Issuer
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import CONTENT_TIMEOUT, Announcement, Ticket
from pmxcfs.vfs.pending import PendingFiles

_log = logging.getLogger("pmxcfs.dcdb")

PUBLISH_AFTER_NS = 1_000_000_000  # age at which the timer publishes a write or saves a new file
RETRY_AFTER_NS = 50_000_000  # delay of the timer after a file that could not be published
# Seconds that a wait may take after its deadline: the one before it may have ended late and well,
# when corosync had a new ring.
MIN_TIMEOUT = 0.5
_NOTHING = Write("", 0, b"", truncate=False)  # of a writeback, until it takes the unpublished bytes


class OpenFile:
    """An open handle of a regular file."""

    def __init__(
        self, entry: Entry, *, append: bool, has_created: bool, caller: Caller = UNKNOWN
    ) -> None:
        self.entry = entry
        self.caller = caller  # has opened it; a write does not tell its process
        self.append = append  # whatever offset comes with a write, it goes to the end
        self.append_end = -1  # the end of the last append, as the kernel computed it
        self.has_created = has_created  # by the open itself, and none of its descriptors was closed
        self.has_written = False  # since the last writeback began
        self.has_truncated = False  # by the open itself, which has cut or made the file
        self.writeback: Ticket | None = (
            None  # took this handle's writes; its result is not told yet
        )
        self.had_written = self.had_truncated = False  # when that writeback began
        # Why a write was refused when the file may already have had unpublished bytes of this
        # handle. They are dropped, so the handle can only be closed.
        self.refusal: PmxcfsError | None = None


class Writeback:
    """The writebacks of all files, the handles that report failures, and the new files to save.

    *on_unpublished* is called when the timer has a file to publish or to save. *on_displaced* is
    called with a file whose pages in the kernel are wrong: written bytes were lost, or an append
    went to another offset. *on_name_gone* is called with the directory and the name of a pending
    file that could not be announced.
    """

    def __init__(
        self,
        tree: Tree,
        issuer: Issuer,
        quorum: QuorumFlag,
        *,
        pending: PendingFiles,
        monotonic_ns: Callable[[], int],
        on_unpublished: Callable[[], None],
        on_displaced: Callable[[Entry], None],
        on_name_gone: Callable[[Entry, str], None],
    ) -> None:
        self.publish_after_ns = PUBLISH_AFTER_NS
        self._tree = tree
        self._issuer = issuer
        self._quorum = quorum
        self._now_ns = monotonic_ns
        self._on_unpublished = on_unpublished
        self._on_displaced = on_displaced
        self._on_name_gone = on_name_gone
        self._pending = pending
        self._pending_files = pending.files
        self._running: dict[Entry, Ticket] = {}  # the writeback of each file that has one
        self._refused: dict[Entry, PmxcfsError] = {}  # to drop bytes by, when the writeback ends
        self._writers: dict[Entry, list[OpenFile]] = {}  # handles to tell of failures
        self._oldest_creation_ns = 0  # of the new files that are not saved; 0 if there are none

    # Handles

    def add_writer(self, handle: OpenFile) -> None:
        """Register *handle*, so that failures of later writebacks are reported to it."""
        self._writers.setdefault(handle.entry, []).append(handle)

    def note_write(self, handle: OpenFile) -> None:
        """Note that *handle* has written to its file, which is published in its caller's name."""
        handle.has_written = True
        writers = self._writers.get(handle.entry)
        if writers is not None and writers[-1] is not handle and handle in writers:
            writers.remove(handle)
            writers.append(handle)  # the last one is the last that has written

    def raise_lost_writes(self, handle: OpenFile) -> None:
        """Raise the error by which bytes of *handle* were lost, if any.

        A further write would be published without the lost bytes, as a file with a hole.
        """
        _raise_refusal(handle)
        ticket = handle.writeback
        if ticket is not None and ticket.error is not None and not handle.entry.is_orphan:
            self._end(handle.entry, ticket)
            if handle.writeback is ticket:
                raise ticket.error

    def refuse(self, handle: OpenFile, error: PmxcfsError) -> None:
        """Drop the file's unpublished bytes, and make *handle* answer *error* from now on.

        Its program may look at the result of a write only, and not at that of the close.
        """
        entry = handle.entry
        handle.refusal = error
        handle.has_written = handle.has_truncated = False
        if entry in self._running:
            self._refused[entry] = error
        else:
            self._drop(entry, error)

    def flush(self, handle: OpenFile) -> None:
        """Publish what *handle* wrote: one of its descriptors is being closed.

        Raises the PmxcfsError by which bytes of *handle* were lost, also in an earlier writeback.
        After Signaled its bytes are still to be published.
        """
        _raise_refusal(handle)
        until_ns = self.after(CONTENT_TIMEOUT)
        if handle.writeback is not None:
            self.await_end(handle.entry, until_ns)  # the file may be dirty again then
        try:
            if handle.has_written or (handle.has_created and handle.entry in self._pending_files):
                self.publish(handle.entry, until_ns)
        finally:
            ticket, handle.writeback = handle.writeback, None
            # The first failure is the cause of later ones, so it is the one to be told.
            if ticket is not None and not handle.entry.is_orphan:
                self._await_result(handle, ticket, until_ns)
        if handle.has_created:
            handle.has_created = False
            self.save_creations()

    def _await_result(self, handle: OpenFile, ticket: Ticket, until_ns: int) -> None:
        """Raise the error of *ticket*, which has taken what *handle* wrote, if it has one. Blocks.

        After Signaled a later call of *handle* tells it.
        """
        if ticket.is_done and ticket.error is None:
            return
        try:
            self._issuer.wait(ticket, self.remaining(until_ns))
        except Signaled:
            handle.writeback = ticket
            raise

    def fsync(self, handle: OpenFile) -> None:
        """Publish all dirty bytes of the file and flush them to the device. Blocks.

        Raises PmxcfsError if bytes of *handle* could not be published, and StoreError.
        """
        handle.has_written = True
        self.flush(handle)
        # Another handle may have written while this one waited.
        handle.has_written = handle.entry.has_unpublished
        self.sync()

    def release(self, handle: OpenFile) -> None:
        """Publish the dirty bytes of *handle*, ignoring PmxcfsError, and remove the handle."""
        if handle.has_written or handle.has_truncated:
            self._publish_quietly(handle.entry)
        self._forget_writer(handle)

    def _forget_writer(self, handle: OpenFile) -> None:
        writers = self._writers.get(handle.entry)
        if writers is not None and handle in writers:
            writers.remove(handle)
            if not writers:
                del self._writers[handle.entry]

    def report_undone_creations(self, entries: Iterable[Entry], error: StoreError) -> None:
        """Report *error* to the handles of those *entries* that a rollback has removed."""
        for entry in entries:
            if not entry.is_attached:
                failed = Ticket(Create(entry.path))
                failed.finish(error)
                for handle in self._writers.get(entry, ()):
                    handle.writeback = failed

    # New files, and the device

    def note_creation(self) -> None:
        """Note that a new file waits to be saved."""
        self._oldest_creation_ns = self._oldest_creation_ns or self._now_ns()
        self._on_unpublished()

    def save_creations(self) -> None:
        """Save new files that are not saved yet.

        Raises StoreError after removing them; Busy and Signaled, after which the timer saves them.
        """
        since_ns, self._oldest_creation_ns = self._oldest_creation_ns, 0
        try:
            self._issuer.save()
        except (Busy, Signaled):
            if since_ns:
                self.note_creation()
            raise

    def sync(self) -> None:
        """Flush all published changes to this node's device. Blocks. Raises StoreError."""
        self.save_creations()
        self._issuer.sync()

    # One writeback

    def publish(self, entry: Entry, until_ns: int, caller: Caller | None = None) -> None:
        """Publish the dirty bytes of *entry* as one change, sent by *until_ns* (monotonic). Blocks.

        *caller* has written them; None: the handle that has written last knows who has.
        Raises Busy if an earlier writeback does not end in time; the bytes stay dirty. Raises
        PmxcfsError if this writeback fails; the bytes are lost then, except after Signaled.
        """
        self.await_end(entry, until_ns)
        if entry.has_unpublished or entry in self._pending_files:
            timeout = self.remaining(until_ns)
            self._publish(entry, Ticket(_NOTHING, target=entry, timeout=timeout), caller)

    def publish_for_another(self, entry: Entry, until_ns: int, limit_ns: int = 0) -> None:
        """Publish *entry* before another change of it, which waits until *until_ns* (monotonic).

        With *limit_ns* this one is answered by then, even if it was sent. Raises PmxcfsError if
        that fails. The file stays dirty after Busy and Signaled; its bytes are lost after any other
        error.
        """
        self.await_end(entry, until_ns)
        if entry.has_unpublished or entry in self._pending_files:
            timeout = self.remaining(until_ns)
            limit = self.remaining(limit_ns) if limit_ns else 0.0
            ticket = Ticket(_NOTHING, target=entry, timeout=timeout, limit=limit, for_another=True)
            self._publish(entry, ticket, None)

    def after(self, seconds: float) -> int:
        """Return the monotonic time, in ns, that comes in *seconds*."""
        return self._now_ns() + int(seconds * 1e9)

    def remaining(self, until_ns: int) -> float:
        """Return the seconds until *until_ns* (monotonic), at least MIN_TIMEOUT."""
        return max((until_ns - self._now_ns()) / 1e9, MIN_TIMEOUT)

    def await_end(self, entry: Entry, until_ns: int) -> None:
        """Wait until no writeback of *entry* runs; ignore its error, which the handles report.

        Raises Busy at *until_ns* (monotonic).
        """
        while entry in self._running:
            ticket = self._running[entry]
            try:
                self._issuer.wait(ticket, self.remaining(until_ns))
            except PmxcfsError:
                if not ticket.is_done:
                    raise
            self._end(entry, ticket)

    def _publish(self, entry: Entry, ticket: Ticket, caller: Caller | None) -> None:
        self._begin(entry, ticket)
        if caller is not None:
            ticket.caller = caller
        try:
            if not self._quorum.is_quorate:
                raise NoQuorum("no quorum: the file system is read-only")
            if entry in self._pending_files:
                self._announce(entry, ticket)
            else:
                unpublished = self._tree.take_unpublished(entry)
                assert unpublished is not None, "asked for only when there is something unpublished"
                # Without the cost of the class's own __new__, which is a Python function.
                ticket.mutation = tuple.__new__(Write, (entry.path, *unpublished))
                self._issuer.carry_out(ticket)
        except PmxcfsError as error:
            ticket.finish(error)
            if not entry.is_orphan:  # removed on this node meanwhile: its content matters no more
                raise
        finally:
            self._end(entry, ticket)

    def _announce(self, entry: Entry, ticket: Ticket) -> None:
        """Announce the pending file *entry*, with its content, as the writeback of *ticket*."""
        self._pending.check(entry)
        taken = self._tree.take_unpublished(entry)
        content = None if taken is None or not taken.data else Write(entry.path, *taken)
        announcement = Announcement(
            Create(entry.path),
            content,
            made=entry,
            timeout=ticket.timeout,
            limit=ticket.limit,
            caller=ticket.caller,
        )
        self._pending.announced.add(entry)
        try:
            self._issuer.announce(announcement)
        except PmxcfsError as error:
            raise self._pending.explain(entry, error) from None
        finally:
            self._pending.announced.discard(entry)
        if announcement.has_found_file and taken is not None and content is None:
            # Another node has made the file meanwhile, and this one asked for an empty one.
            ticket.mutation = Write(entry.path, *taken)
            self._issuer.carry_out(ticket)
        else:
            ticket.finish()

    def rename_pending(
        self,
        entry: Entry,
        target: str,
        until_ns: int,
        limit_ns: int,
        *,
        objection: Callable[[], PmxcfsError | None] | None,
        caller: Caller,
    ) -> None:
        """Announce the pending file *entry* and rename it to the path *target*, with one wait.

        The times are monotonic: it is sent by *until_ns*, and answered by *limit_ns*. Raises
        PmxcfsError. The file stays pending after Busy and Signaled, and if *objection* is raised.
        """
        timeout, limit = self.remaining(until_ns), self.remaining(limit_ns)
        ticket = Ticket(_NOTHING, target=entry, timeout=timeout, for_another=True)
        self._begin(entry, ticket)
        try:
            self._pending.check(entry)
            taken, path = self._tree.take_unpublished(entry), entry.path
            announcement = Announcement(
                Create(path),
                None if taken is None else Write(path, *taken),
                Rename(path, target),
                made=entry,
                timeout=timeout,
                limit=limit,
                caller=caller,
                objection=objection,
            )
            self._pending.announced.add(entry)
            try:
                self._issuer.announce(announcement)
            except PmxcfsError as error:
                if announcement.was_refused:  # nothing was sent
                    ticket.finish(Busy(str(error)))
                    raise
                if not announcement.is_announced or error is not announcement.error:
                    raise self._pending.explain(entry, error) from None
                ticket.finish()  # only the RENAME has failed
                raise
            finally:
                self._pending.announced.discard(entry)
            ticket.finish()
        except PmxcfsError as error:
            if not ticket.is_done:
                ticket.finish(error)
            raise
        finally:
            self._end(entry, ticket)

    def _begin(self, entry: Entry, ticket: Ticket) -> None:
        """Begin a writeback: *ticket* has its result for all handles that have written."""
        self._running[entry] = ticket
        for handle in self._writers.get(entry, ()):
            if handle.has_written or handle.has_truncated:
                ticket.caller = handle.caller
            _track_handle(handle, ticket)

    def _end(self, entry: Entry, ticket: Ticket) -> None:
        """End a writeback: update the draft with its result.

        The first caller does that; later calls do nothing.
        """
        if self._running.get(entry) is not ticket:
            return
        del self._running[entry]
        if not ticket.is_done:
            ticket.finish(
                Failed("the written data could not be published")
            )  # a bug, which was logged
        if ticket.error is None:
            self._tree.finish_unpublished(entry)
        elif isinstance(ticket.error, Signaled) or (
            ticket.for_another and isinstance(ticket.error, Busy)
        ):
            self._redirty(entry, ticket)
        elif entry in self._pending_files:
            self._give_up(entry, ticket)
        elif not entry.is_orphan:
            self._discard(entry, ticket)
        if ticket.error is None and entry in self._pending_files:
            # The content went to a file of another node, for which it can't stand in.
            self._pending.remove(entry)
        refusal = self._refused.pop(entry, None)
        if refusal is not None:
            self._drop(entry, refusal)
        if entry.has_unpublished:  # the timer passes over a file while its writeback runs
            self._on_unpublished()

    def _redirty(self, entry: Entry, ticket: Ticket) -> None:
        """Mark the bytes as dirty and the handles as writers again: nothing was changed."""
        self._tree.redirty_unpublished(entry, self._now_ns())
        for handle in self._writers.get(entry, ()):
            if handle.writeback is ticket:
                handle.writeback = None
                handle.has_written |= handle.had_written
                handle.has_truncated |= handle.had_truncated

    def _drop(self, entry: Entry, error: PmxcfsError) -> None:
        """Discard the dirty bytes of *entry*, if any, as if publishing had failed with *error*."""
        is_pending = entry in self._pending_files
        if entry.has_unpublished or is_pending:
            failed = Ticket(_NOTHING, target=entry)
            failed.finish(error)
            if is_pending:
                self._give_up(entry, failed)
            else:
                self._discard(entry, failed)

    def _give_up(self, entry: Entry, ticket: Ticket) -> None:
        """Remove the pending file *entry*: it can't be announced. Its handles can only be closed.

        Logs a warning.
        """
        directory, name, error = entry.parent, entry.name, ticket.error
        assert directory is not None, "pending files have a directory"
        assert error is not None, "a file is given up after a failure"
        self._discard(entry, ticket, "the new file %s is removed: %s")
        for handle in self._writers.get(entry, ()):
            if handle.writeback is not None:
                handle.refusal = handle.refusal or error
        self._pending.remove(entry)
        self._on_name_gone(directory, name)

    def _discard(
        self,
        entry: Entry,
        ticket: Ticket,
        warning: str = "the last writes to %s are lost: %s",
    ) -> None:
        """Discard all dirty bytes, also those written meanwhile. Logs a warning."""
        self._tree.discard_unpublished(entry)
        self._on_displaced(entry)
        for handle in self._writers.get(entry, ()):
            _track_handle(handle, ticket)
        assert ticket.error is not None, "bytes are lost only by a failure"
        _log.warning(warning, _shown(entry), _errno_of(ticket.error))

    # Publishing by time

    def publish_due(self) -> int:
        """Publish the files that are due; return the ns until the next one is due, 0 if none.

        For the timer thread. The handles that wrote report the errors.
        """
        for entry in self._pending.due(self._now_ns() - self.publish_after_ns):
            if entry not in self._running:
                self._announce_by_time(entry)
        for entry in self._waiting():
            if self._is_due(entry.unpublished_since_ns):
                self._publish_quietly(entry)
        if self._oldest_creation_ns and self._is_due(self._oldest_creation_ns):
            self._save_creations_quietly()
        since = [entry.unpublished_since_ns for entry in self._waiting()[:1]]
        since += [self._oldest_creation_ns] if self._oldest_creation_ns else []
        since += [self._pending.oldest_ns()] if self._pending.oldest_ns() else []
        if not since:
            return 0
        delay_ns = min(since) + self.publish_after_ns - self._now_ns()
        return delay_ns if delay_ns > 0 else RETRY_AFTER_NS

    def publish_all(self) -> None:
        """Publish everything now: the daemon stops."""
        for entry in [*self._pending_files, *self._tree.unpublished()]:
            self._publish_quietly(entry)
        self._save_creations_quietly()

    def _is_due(self, since_ns: int) -> bool:
        return self._now_ns() - since_ns >= self.publish_after_ns

    def _waiting(self) -> list[Entry]:
        """Return the dirty files whose writeback does not run, oldest first."""
        running, pending = self._running, self._pending_files
        dirty = self._tree.unpublished()
        return [entry for entry in dirty if entry not in running and entry not in pending]

    def _publish_quietly(self, entry: Entry) -> None:
        """Publish *entry* and ignore errors, which the handles that wrote report."""
        with contextlib.suppress(PmxcfsError):
            self.publish(entry, self.after(CONTENT_TIMEOUT))

    def _announce_by_time(self, entry: Entry) -> None:
        """Announce a pending file; if it stays pending, the timer passes over it from now on."""
        if self._issuer.can_announce_later():
            with contextlib.suppress(PmxcfsError):
                self.publish_for_another(entry, self.after(CONTENT_TIMEOUT))
        if entry in self._pending_files:
            self._pending.pass_over(entry)

    def _save_creations_quietly(self) -> None:
        are_waiting = self._oldest_creation_ns != 0
        try:
            self.save_creations()
        except Busy:  # the device stands still
            pass
        except StoreError as error:
            if are_waiting:
                _log.warning("new files could not be saved and were removed: %s", error)


def _track_handle(handle: OpenFile, ticket: Ticket) -> None:
    """Make *handle* report the result of *ticket*, if it wrote since the last writeback began."""
    has_changed = handle.has_written or handle.has_truncated
    if has_changed and (handle.writeback is None or handle.writeback.error is None):
        handle.writeback = ticket  # else an earlier failure is not reported yet
        handle.had_written, handle.had_truncated = handle.has_written, handle.has_truncated
    handle.has_written = handle.has_truncated = False


def _raise_refusal(handle: OpenFile) -> None:
    """Raise the error by which a write of *handle* was refused, if any."""
    if handle.refusal is not None and not handle.entry.is_orphan:
        raise handle.refusal.with_traceback(None)


def _errno_of(error: PmxcfsError) -> str:
    """Return the name of the errno; the error's text may have a private path."""
    return errno.errorcode.get(error.errno, str(error.errno))


def _shown(entry: Entry) -> str:
    """Return the path as it may appear in a log."""
    return "a private file" if entry.private else entry.path
