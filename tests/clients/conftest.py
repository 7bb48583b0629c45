"""What the tests of local clients share."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.clients.serving import CClient, compile_client


@pytest.fixture(scope="session")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> CClient:
    """The client in C. Everybody may run it: some tests do that as somebody else."""
    directory = tmp_path_factory.mktemp("client")
    program = compile_client(directory)
    for path in (program, *directory.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return CClient(program)


@pytest.fixture
def service(tmp_path: Path) -> str:
    """A name that no other service on this machine has."""
    return f"test-{hashlib.sha256(os.fsencode(tmp_path)).hexdigest()[:16]}"
