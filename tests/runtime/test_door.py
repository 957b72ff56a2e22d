"""The door of an engine that is in somebody's own process: who rings while it cannot open, or as that process ends."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_SECONDS

from nexum_runtime.engines import nearest
from nexum_runtime.server import door
from nexum_runtime.server.door import Door
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.store.sqlite import SqliteStore


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Door]:
    store = SqliteStore(tmp_path / "local.db")
    engine = Engine(store)
    own = Door(store.path, Methods(engine, lambda: None), store.tell_where)
    await own.open()
    yield own
    await engine.close()
    await own.close()
    await store.close()


async def test_who_rings_when_it_could_not_open_has_another_try(
    opened: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    imported, times = door._imported, list[int]()

    def refused_twice() -> Callable[..., Any]:
        times.append(1)
        if len(times) <= 2:
            raise ImportError("cannot import a name, as somebody else imports it just now")
        return imported()

    monkeypatch.setattr(door, "_imported", refused_twice)
    way = await nearest._of_owner(tmp_path / "local.db")
    assert way is not None
    assert (await way.ask("ListExecutions", {"limit": 1}, {}))[0].executions == []
    await way.close()
    assert [each.message.partition(": ")[2] for each in caplog.records if "cannot reach" in each.message] == [
        "ImportError: cannot import a name, as somebody else imports it just now"
    ]


async def test_who_rings_as_it_closes_is_hung_up_on(opened: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    begins, may_end = threading.Event(), threading.Event()

    def slow() -> Callable[..., Any]:
        begins.set()
        may_end.wait(PATIENCE_SECONDS)
        return door._imported

    monkeypatch.setattr(door, "_imported", slow)
    reader, writer = await asyncio.open_unix_connection(opened._path)
    assert await asyncio.to_thread(begins.wait, PATIENCE_SECONDS)
    closing = asyncio.create_task(opened.close())
    assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
    may_end.set()
    await closing
    writer.close()
    gc.collect()  # what was left open would warn now


async def test_at_the_end_of_the_interpreter_no_one_comes_in_any_more(
    opened: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nearest, "RING_SECONDS", 0.5)
    monkeypatch.setattr(door, "_begins_threads", lambda: False)
    assert await nearest._of_owner(tmp_path / "local.db") is None
    assert opened._grpc is None, "gRPC begins threads, and does not survive it when it cannot"
    assert not caplog.records


async def test_where_no_thread_begins_any_more_a_store_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter, since Python 3.12."""
    store = SqliteStore(tmp_path / "local.db")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    await store.close()
    assert [each.name for each in tmp_path.iterdir()] == ["local.db"]
