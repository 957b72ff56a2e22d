"""What the tests share: a real server in this process, on a free port and with its database in tmp_path."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from processes import STARTED

from nexum_runtime import Client
from nexum_runtime.server.app import Server, ServerConfig

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
os.environ["OTEL_SDK_DISABLED"] = "true"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def address(server: Server) -> str:
    return f"localhost:{server.port}"


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()
