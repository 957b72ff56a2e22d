"""What load balancers ask of a server: does it answer, can it do its work? Each is told to anyone, and quickly."""

import asyncio
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import postgres
import psycopg
import pytest
from command import ECHO, start
from processes import NexumDev, eventually
from test_failing_store import limit
from test_neighbours import be_another_user

from nexum_runtime import Client
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.engine import readiness
from nexum_runtime.server.rpc import health, neighbours

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@pytest.fixture
def own() -> Iterator[postgres.Postgres]:
    started = postgres.Postgres()
    yield started
    started.remove()


@asynccontextmanager
async def serving(database: Path | str, **options: Any) -> AsyncIterator[Server]:
    server = Server(ServerConfig(database, port=0, metrics_port=0, **options))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def asked(port: int | None, path: str) -> tuple[int, str]:
    """Status and body."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


def requested(service: str) -> bytes:
    """A HealthCheckRequest, whose field 1 is a text."""
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


def status(response: bytes) -> int:
    """Of a HealthCheckResponse, whose field 1 is a small number."""
    assert response[:-1] == b"\x08"
    return response[-1]


async def checked(port: int, service: str = "") -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return status(await channel.unary_unary("/grpc.health.v1.Health/Check")(requested(service)))


async def test_a_server_that_can_work_is_healthy_by_each_of_its_names(tmp_path: Path) -> None:
    async with serving(tmp_path / "nexum.db") as server:
        assert await asked(server.metrics_port, "/healthz") == (200, "ok\n")
        assert await asked(server.metrics_port, "/readyz") == (200, "ready\n")
        for service in ("", "nexum.NexumService", "nexum.NexumExtensions"):
            assert await checked(server.port, service) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await checked(server.port, "another.Service")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            watched = channel.unary_stream("/grpc.health.v1.Health/Watch")(requested("another.Service"))
            assert status(await watched.read()) == SERVICE_UNKNOWN
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff")
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_it_is_told_without_the_token_and_nothing_else_is(tmp_path: Path) -> None:
    async with serving(tmp_path / "nexum.db", token="correct-horse-battery-staple") as server:
        assert await asked(server.metrics_port, "/readyz") == (200, "ready\n")
        assert (await asked(server.metrics_port, "/metrics"))[0] == 401
        assert await checked(server.port) == SERVING
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for method in (
                "/grpc.health.v1.Health/Other",
                "/grpc.health.v1.Healthy/Check",
                "/nexum.NexumService/Check",
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(method)(b"")
                known = method.startswith("/grpc.health.v1.Health/")
                assert refused.value.code() == (
                    grpc.StatusCode.UNIMPLEMENTED if known else grpc.StatusCode.UNAUTHENTICATED
                )


@pytest.mark.skipif(not neighbours.can_tell(), reason="this system does not tell whose a connection is")
async def test_it_is_told_to_another_user_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path / "nexum.db") as server:
        be_another_user(monkeypatch)
        assert await asked(server.metrics_port, "/readyz") == (200, "ready\n")
        assert await checked(server.port) == SERVING


async def test_who_watches_is_told_when_the_database_goes_and_comes_back_and_when_the_server_stops(
    own: postgres.Postgres,
) -> None:
    async with serving(own.url) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watched = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert status(await watched.read()) == SERVING
        own.stop(signal.SIGKILL)
        assert status(await watched.read()) == NOT_SERVING
        assert await asked(server.metrics_port, "/readyz") == (503, "not ready\n")
        assert await asked(server.metrics_port, "/healthz") == (200, "ok\n")  # a restart of the server helps nobody
        own.start()
        assert status(await watched.read()) == SERVING
        assert await asked(server.metrics_port, "/readyz") == (200, "ready\n")
        async with Client(f"127.0.0.1:{server.port}") as client:
            await client.register(ECHO)
            call = asyncio.create_task(client.execute(ECHO, {}, execution_id="s/1"))  # which is under way
            await start(client, "s/2")
            stopping = asyncio.create_task(server.stop())
            assert status(await watched.read()) == NOT_SERVING
            assert await watched.read() is grpc.aio.EOF
            call.cancel()
        await stopping


async def test_a_database_that_does_not_answer_is_not_waited_for_and_not_asked_again_and_again(
    own: postgres.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(own.url) as server:
        await eventually(server.engine.is_ready)
        monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 0.2)
        own.pause()
        try:

            async def is_noticed() -> bool:
                return await asked(server.metrics_port, "/readyz") == (503, "not ready\n")

            await eventually(is_noticed)
            tried = server.engine._readiness._tried
            assert [await server.engine.is_ready() for _ in range(100)] == [False] * 100
            assert server.engine._readiness._tried is tried
            assert await checked(server.port) == NOT_SERVING
        finally:
            own.go_on()
        await eventually(server.engine.is_ready)


async def test_many_who_ask_at_once_cost_one_write(tmp_path: Path) -> None:
    async with serving(tmp_path / "nexum.db") as server:
        before = server.store.metrics._writes
        assert all(await asyncio.gather(*(server.engine.is_ready() for _ in range(500))))
        assert server.store.metrics._writes - before <= 1 + 2  # and what its sweeper does


async def test_a_server_on_a_replica_is_not_ready(own: postgres.Postgres) -> None:
    async with serving(own.url) as server:
        await eventually(server.engine.is_ready)
        with psycopg.connect(own.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")

        async def is_ready() -> bool:
            return await server.engine.is_ready()

        async def is_noticed() -> bool:
            return not await is_ready()

        await eventually(is_noticed)
        with psycopg.connect(own.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
        await eventually(is_ready)


async def test_a_server_whose_disk_is_full_is_not_ready(tmp_path: Path) -> None:
    async with NexumDev(tmp_path, "--metrics-port", "0") as nexum:
        port = int((await nexum.says(r"metrics at http://localhost:(\d+)/metrics"))[1])
        assert await asked(port, "/readyz") == (200, "ready\n")
        limit(nexum, 1)

        async def is_noticed() -> bool:
            return await asked(port, "/readyz") == (503, "not ready\n")

        await eventually(is_noticed)
        limit(nexum, None)

        async def is_over() -> bool:
            return await asked(port, "/readyz") == (200, "ready\n")

        await eventually(is_over)


async def test_watchers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WATCHERS_LIMIT", 2)
    async with (
        serving(tmp_path / "nexum.db") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        first, second = watch(b""), watch(b"")
        assert [status(await each.read()) for each in (first, second)] == [SERVING] * 2
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watch(b"").read()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()

        async def is_let_in() -> bool:
            try:
                return status(await watch(b"").read()) == SERVING
            except grpc.aio.AioRpcError:
                return False

        await eventually(is_let_in)
