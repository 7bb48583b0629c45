"""Everything that can go wrong, as one tree of exceptions.

An inner layer raises these and nothing else; each edge turns them into its own language in exactly
one place (fuse: errno, ipc: negative status). ``errno`` is what a caller of the file system gets.
"""

import errno as codes


class PmxcfsError(Exception):
    """The root of the tree. *errno* is the answer that a system call gets."""

    errno = codes.EIO


class NotFound(PmxcfsError):
    """No such path, or no longer."""

    errno = codes.ENOENT


class Exists(PmxcfsError):
    """The name is taken, or the vmid is in use at another path."""

    errno = codes.EEXIST


class NotADirectory(PmxcfsError):
    """A file stands where a directory is needed."""

    errno = codes.ENOTDIR


class NotEmpty(PmxcfsError):
    """A directory that has entries can't be removed, renamed or replaced."""

    errno = codes.ENOTEMPTY


class Denied(PmxcfsError):
    """The rules of the tree forbid it, whoever asks."""

    errno = codes.EACCES


class NoQuorum(Denied):
    """This node can't see a majority of the cluster, so nothing may change."""


class NotPermitted(PmxcfsError):
    """An owner, a mode or a kind of file that this file system does not have."""

    errno = codes.EPERM


class TooBig(PmxcfsError):
    """The content would exceed the size limit of one file."""

    errno = codes.EFBIG


class NoSpace(PmxcfsError):
    """The tree would exceed its limit of content or of entries."""

    errno = codes.ENOSPC


class NameTooLong(PmxcfsError):
    """The name has more bytes than a new name may have."""

    errno = codes.ENAMETOOLONG


class Invalid(PmxcfsError):
    """An argument that can't be represented."""

    errno = codes.EINVAL


class Unsupported(PmxcfsError):
    """An operation that this file system does not have."""

    errno = codes.ENOSYS


class UnknownRequest(PmxcfsError):
    """A local client asks for something that there is not."""

    errno = codes.ECHRNG


class Failed(PmxcfsError):
    """An object of the daemon's own refuses this input."""

    errno = codes.EIO


class Stale(PmxcfsError):
    """The object that was meant is not the one that is there now."""

    errno = codes.ESTALE


class Busy(PmxcfsError):
    """Too much is waiting already, or the wait took too long; nothing was changed."""

    errno = codes.EBUSY


class StoreError(PmxcfsError):
    """The database could not be read or written. *errno* says what the device answered."""

    def __init__(self, message: str, errno: int = codes.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class StartError(PmxcfsError):
    """The daemon can't start; the message says why and what to do next."""


class BadMessage(PmxcfsError):
    """Bytes from another node that are no message of their group; the text says which field."""


class OtherProtocol(BadMessage):
    """A message of another protocol version. *is_newer* tells that this node needs an update."""

    def __init__(self, message: str, *, is_newer: bool) -> None:
        super().__init__(message)
        self.is_newer = is_newer


class ClusterError(PmxcfsError):
    """A call of a corosync library failed: which one, its code and what corosync calls that."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} (code {code})")
        self.call = call
        self.code = code


class TryAgain(ClusterError):
    """Corosync has no room just now; the same call can succeed soon."""

    errno = codes.EBUSY


class Disconnected(ClusterError):
    """The connection to corosync is gone; it takes a new handle."""


class Interrupted(ClusterError):
    """A membership change met the fragments of a large message, which was not sent."""


class IpcError(PmxcfsError):
    """A call over libqb failed, or the other side refused a request; *errno* says why."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
