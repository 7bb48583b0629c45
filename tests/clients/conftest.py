"""Fixtures for the tests of local clients."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.clients.serving import CClient, compile_client


@pytest.fixture(scope="session")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> CClient:
    """The compiled client in C, which every user may run: some tests run it as another user."""
    directory = tmp_path_factory.mktemp("client")
    program = compile_client(directory)
    for path in (program, *directory.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return CClient(program)


@pytest.fixture
def service(tmp_path: Path) -> str:
    """An IPC name that no other service on this machine uses."""
    return f"test-{hashlib.sha256(os.fsencode(tmp_path)).hexdigest()[:16]}"
