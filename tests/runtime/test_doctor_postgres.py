"""`nexum doctor` names what is wrong with a PostgreSQL database, and the metrics show it: with a real one."""

import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from typing import Any

import postgres
import psycopg
import pytest
from command import nexum
from processes import eventually
from prometheus_client.parser import text_string_to_metric_families
from test_doctor import diagnosed

from nexum_runtime.cli.base import FAILED
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.store.postgres import database
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.store import PostgresStore
from nexum_runtime.server.store.postgres.talk import MARK_AGAIN_SECONDS

CONNECTIONS = 14  # of all programs together


@pytest.fixture(scope="module")
def own() -> Iterator[postgres.Postgres]:
    started = postgres.Postgres()
    started.stop()
    started._settings += ["-c", f"max_connections={CONNECTIONS}"]
    started.start()
    yield started
    started.remove()


@pytest.fixture
async def server(own: postgres.Postgres, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr("nexum_runtime.server.engine.engine.TOUCH_SECONDS", 1.0)
    monkeypatch.setattr("nexum_runtime.server.store.postgres.store.INSPECT_SECONDS", 1.0)
    server = Server(ServerConfig(own.url, port=0))
    await server.start()
    yield server
    await server.stop()


async def named(server: Server, cause: str, words: str) -> None:
    """Within a while, as long as no other thing is named that is wrong."""

    async def is_named() -> bool:
        found = await diagnosed(f"127.0.0.1:{server.port}")
        return words in found.get(cause, "")

    await eventually(is_named, f"{cause}: {words}")


async def is_well(server: Server) -> bool:
    """But for what it says of the past."""
    found = await diagnosed(f"127.0.0.1:{server.port}")
    past = found.pop("database", "Something could not be recorded")
    return not found and past.startswith("Something could not be recorded")


async def test_a_database_that_is_away_is_named_and_its_return(own: postgres.Postgres, server: Server) -> None:
    own.stop(signal.SIGKILL)
    try:
        await named(server, "database", "Start PostgreSQL there, or put the right host and port into its URL.")
        finished = await nexum(f"127.0.0.1:{server.port}", "doctor")
        assert finished.code == FAILED
        assert " · cannot be read" in finished.stdout
    finally:
        own.start()
    await eventually(lambda: is_well(server))


async def test_a_database_that_does_not_answer_is_named(own: postgres.Postgres, server: Server) -> None:
    own.pause()
    try:
        await named(server, "database", "has not answered for 1 s. Is it there?")
    finally:
        own.go_on()
    await eventually(lambda: is_well(server))


async def test_a_database_that_became_read_only_is_named(own: postgres.Postgres, server: Server) -> None:
    def change(what: str) -> None:
        with closing(psycopg.connect(own.url, autocommit=True)) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM {what}".encode())
            connection.execute("SELECT pg_reload_conf()")

    change("SET default_transaction_read_only = on")
    try:
        await named(server, "database", "It is a replica, or read-only: name the one that can be written to.")
    finally:
        change("RESET default_transaction_read_only")
    await eventually(lambda: is_well(server))


async def test_a_database_that_is_too_old_after_a_failover_is_named(
    own: postgres.Postgres, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "OLDEST", 990_000)
    own.end_connections()
    await named(server, "database", "Nexum needs 99 or newer.")


async def test_connections_that_run_out_are_named_before_and_after(own: postgres.Postgres, server: Server) -> None:
    await eventually(lambda: is_well(server))
    others: list[Any] = []

    def fill() -> None:
        with suppress(psycopg.OperationalError):
            while True:
                others.append(psycopg.connect(own.url))

    fill()
    try:
        await named(server, "connections", f"of {CONNECTIONS - 3} connections in use, and refuses more.")
        assert isinstance(server.store, PostgresStore)
        server.store._writes_by.close()
        fill()
        await named(server, "database", "Raise its max_connections, or end other programs' connections.")
    finally:
        for each in others:
            each.close()
    await eventually(lambda: is_well(server))


async def test_clocks_that_are_apart_are_named_and_nothing_is_wrong(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "clock_ahead_ms", lambda self: -7_000)
    await named(server, "clock", "The clock of the server's machine is 7.0 s ahead of PostgreSQL's.")


async def test_notifications_that_do_not_arrive_are_named(
    own: postgres.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Connection, seconds: float) -> Iterator[tuple[int, str]]:
        time.sleep(seconds / 10)
        return iter([])

    monkeypatch.setattr(Connection, "notifications", none)
    monkeypatch.setattr("nexum_runtime.telling.diagnosis.LAG_MS", 1_000)
    server = Server(ServerConfig(own.url, port=0))
    await server.start()
    try:
        await named(server, "notifications", "A pooler in transaction mode hands none on")
    finally:
        await server.stop()


async def test_metrics_tell_the_connections_and_how_long_a_notification_takes(server: Server) -> None:
    async def measured() -> dict[str, float]:
        families = text_string_to_metric_families(await server.engine.measure())
        return {
            f"{sample.name} {sample.labels.get('state', '')}": sample.value
            for family in families
            for sample in family.samples
        }

    async def is_all_there() -> bool:
        found = await measured()
        return found["nexum_notification_lag_seconds "] > 0 and found["nexum_database_connections open"] >= 5

    await eventually(is_all_there)
    assert isinstance(server.store, PostgresStore)
    talk = server.store._talk
    assert talk is not None
    told = talk._marked_last
    await eventually(lambda: talk._marked_last > told)
    found = await measured()
    assert found["nexum_notification_lag_seconds "] < MARK_AGAIN_SECONDS, "it has come back"
    assert found["nexum_database_connections open"] <= 6


async def test_a_database_that_is_silent_keeps_no_metrics_waiting(
    own: postgres.Postgres, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.engine.engine.MEASURE_SECONDS", 0.2)
    own.pause()
    try:
        assert "nexum_tasks{" not in await server.engine.measure()
    finally:
        own.go_on()
