"""What the tests share: a real server in this process, on a free port and with its database in tmp_path."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import postgres
import pytest
from processes import PATIENCE_SECONDS, kill_all

from nexum_agents import watching
from nexum_runtime import Client
from nexum_runtime.engines import host, near
from nexum_runtime.server.app import Server, ServerConfig

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["NEXUM_DATABASE_URL"] = "sqlite:////dev/null/no-test-has-said-which.db"  # never that of this folder
os.environ["NEXUM_PORT"] = "0"  # nor a server that a developer runs
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell does in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
watching.HELD_SECONDS = PATIENCE_SECONDS  # on a busy machine quick watchers look slow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--embedded", action="store_true", help="the engine in this process, where a test needs no server")
    parser.addoption("--pictures", action="store_true", help="make the pictures of the page anew")
    parser.addoption("--postgres", action="store_true", help="the server's database is PostgreSQL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first: the other processes have enough to do beside it."""
    items.sort(key=lambda item: "sdk_suite" not in item.nodeid)


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as found:
            return int(found.getsockname()[1])

    return find


@pytest.fixture
def is_embedded(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--embedded"))


@pytest.fixture
def with_a_server(is_embedded: bool) -> None:
    if is_embedded:
        pytest.skip("it needs a server")


@pytest.fixture
async def server(request: pytest.FixtureRequest, tmp_path: Path, with_a_server: None) -> AsyncIterator[Server]:
    of_postgres = request.config.getoption("--postgres")
    server = Server(ServerConfig(postgres.schema_for(tmp_path) if of_postgres else tmp_path / "nexum.db", port=0))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def address(
    request: pytest.FixtureRequest, is_embedded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Of a server; "" when whoever needs an engine has it, or finds it by the file."""
    if is_embedded:
        monkeypatch.setenv("NEXUM_DATABASE_URL", f"sqlite:///{tmp_path / 'nexum.db'}")
        yield ""
        host.close_all()
    else:
        yield f"localhost:{request.getfixturevalue('server').port}"


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with near(address) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    kill_all()
