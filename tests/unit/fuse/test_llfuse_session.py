"""The end of llfuse's main loop."""

import llfuse
import pytest

from pmxcfs.fuse.llfuse_session import LlfuseSession


@pytest.mark.parametrize("error", [ConnectionAbortedError, PermissionError])
def test_an_aborted_connection_is_an_end_like_an_unmount(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(llfuse, "main", fail)
    session = LlfuseSession(workers=5)
    if error is ConnectionAbortedError:
        session.serve()
    else:
        with pytest.raises(PermissionError):
            session.serve()
