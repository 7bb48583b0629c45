"""The exceptions of the package, in one class tree. Each has an errno, its own or its base class's.

The folders inside the package raise only these. Each edge translates them in exactly one place:
``fuse`` to an errno, ``ipc`` to a negative status.
"""

import errno as codes


class PmxcfsError(Exception):
    """The base class. *errno* is what a system call on the mount returns."""

    errno = codes.EIO


class NotFound(PmxcfsError):
    """The path does not exist, or does not exist any more."""

    errno = codes.ENOENT


class Exists(PmxcfsError):
    """The name exists already, or the vmid is in use at another path."""

    errno = codes.EEXIST


class GuestTaken(Exists):
    """A guest's number is in use: the file *path* can't have it, as the file *holder* has it."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"{path}: its number is in use by {holder}")
        self.path = path


class NotADirectory(PmxcfsError):
    """A component of the path is a file where a directory is needed."""

    errno = codes.ENOTDIR


class IsADirectory(PmxcfsError):
    """A directory is where a file is needed."""

    errno = codes.EISDIR


class NotEmpty(PmxcfsError):
    """A directory that has entries can't be removed, renamed or replaced."""

    errno = codes.ENOTEMPTY


class Denied(PmxcfsError):
    """The rules of the tree forbid the operation, for root too."""

    errno = codes.EACCES


class NoQuorum(Denied):
    """This node has no quorum, so it refuses every change of the tree. The errno is EACCES."""


class NotPermitted(PmxcfsError):
    """The request sets an owner, a mode or a file type that this file system does not support."""

    errno = codes.EPERM


class TooBig(PmxcfsError):
    """The content would exceed the size limit of one file."""

    errno = codes.EFBIG


class NoSpace(PmxcfsError):
    """The tree would exceed its limit of content or of entries."""

    errno = codes.ENOSPC


class NameTooLong(PmxcfsError):
    """A new name has more bytes than ``messages.MAX_NEW_NAME``."""

    errno = codes.ENAMETOOLONG


class Invalid(PmxcfsError):
    """An argument is out of range or malformed."""

    errno = codes.EINVAL


class Unsupported(PmxcfsError):
    """The file system does not support the operation."""

    errno = codes.ENOSYS


class UnknownRequest(PmxcfsError):
    """A local client sent an unknown request number."""

    errno = codes.ECHRNG


class Failed(PmxcfsError):
    """The operation failed with EIO: its outcome is unknown, or the target refuses the input."""

    errno = codes.EIO


class Stale(PmxcfsError):
    """The path now has another object than the one that the request refers to."""

    errno = codes.ESTALE


class Busy(PmxcfsError):
    """A queue is full, or a wait took too long; nothing was changed."""

    errno = codes.EBUSY


class Stalled(Busy):
    """A change could not begin to be written in time, as the device stands still."""

    def __init__(self) -> None:
        super().__init__("the device takes no changes now, nothing was changed")


class Signaled(PmxcfsError):
    """The program has got a signal while its request waited; nothing was sent or written yet."""

    errno = codes.EINTR

    def __init__(self) -> None:
        super().__init__("a signal has ended the wait, nothing was changed")


class StoreError(PmxcfsError):
    """The database could not be read or written. *errno* is the error of the device."""

    def __init__(self, message: str, errno: int = codes.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class UnreadableDatabase(StoreError):
    """SQLite can't read the file: parts of it are damaged, or it is something else."""


class NoCopy(StoreError):
    """This node's own changes could not be copied, so the leader's tree was not adopted."""


class StartError(PmxcfsError):
    """The daemon can't start; the message gives the reason and the next step."""


class InUse(StartError):
    """Another daemon uses the state directory."""


class NotRoot(StartError):
    """Only root can mount the file system."""

    errno = codes.EPERM


class BadMessage(PmxcfsError):
    """A message from another node can't be decoded; the text names the field."""


class OtherProtocol(BadMessage):
    """A message has another protocol version. If *is_newer*, this node needs an update."""

    def __init__(self, message: str, *, is_newer: bool) -> None:
        super().__init__(message)
        self.is_newer = is_newer


class ClusterError(PmxcfsError):
    """A call of a corosync library failed; the text has the call, the error code and its name."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} (code {code})")
        self.call = call
        self.code = code


class TryAgain(ClusterError):
    """Corosync's buffers are full; the same call can succeed later."""

    errno = codes.EBUSY


class Disconnected(ClusterError):
    """The connection to corosync is lost; the caller needs a new handle."""


class Interrupted(ClusterError):
    """A membership change interrupted a message sent in fragments; the message was not sent."""


class IpcError(PmxcfsError):
    """A libqb call failed, or the server refused a request; *errno* gives the reason."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class NoAnswer(IpcError):
    """Nothing can be learned from the daemon: it refuses the client, or does not answer in time."""


class NotRunning(NoAnswer):
    """No daemon listens under the name that was given."""
