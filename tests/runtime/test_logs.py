"""Whoever is told what is logged is nobody's result."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from command import ECHO, Text
from nexum import workflow
from nexum.context import ContextView

from nexum_runtime import Client, Worker, tracing
from nexum_runtime.logs import Log
from nexum_runtime.server.app import Server


class Broken(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise ConnectionError("the collector of the logs has gone")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    """A handler for all that is logged, which raises."""
    monkeypatch.setattr(Log, "_has_failed", False)
    handler, root = Broken(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


async def test_what_a_handler_of_logs_raises_is_printed_once_and_is_nobodys_result(
    client: Client, server: Server, broken: Broken, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    async def run(_: ContextView) -> Text:
        done.append("once")
        Log("nexum.test").warning("in the middle of it")
        return Text(text="done")

    definition = workflow("logging").effect("run", Text, run).build()
    worker = Worker([definition], port=server.port)
    working = asyncio.create_task(worker.run())
    for n in range(2):
        outcome = await client.execute(definition, {}, execution_id=f"s/{n}", effect="once")
        assert (outcome.status, outcome.attempts) == ("COMPLETED", 1)
    worker.stop()
    await working
    assert done == ["once"] * 2
    assert broken.count >= 2
    assert capsys.readouterr().err.count("ConnectionError: the collector of the logs has gone") == 1


def test_a_line_of_the_log_says_where_it_was_written_and_keeps_what_was_added(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Log("nexum.test").warning("said %s", "here", extra={"execution": "s/1"})
    try:
        raise ValueError("no luck")
    except ValueError:
        Log("nexum.test").exception("failed")
    (said, failed) = caplog.records
    assert (said.getMessage(), said.filename, said.funcName) == (
        "said here",
        "test_logs.py",
        "test_a_line_of_the_log_says_where_it_was_written_and_keeps_what_was_added",
    )
    assert vars(said)["execution"] == "s/1"
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ValueError


async def test_a_set_up_of_opentelemetry_that_fails_is_said_once_and_calls_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("its certificate cannot be read")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setattr(tracing, "_provider", fails)
    tracing.tracer.cache_clear()
    for n in range(2):
        outcome = await client.run_local(ECHO, {}, lambda: asyncio.sleep(0, {"text": "x"}), execution_id=f"s/{n}")
        assert outcome.status == "COMPLETED"
    tracing.tracer.cache_clear()
    said = [record.getMessage() for record in caplog.records if record.name == "nexum.tracing"]
    assert set(said) == {"No spans are sent: RuntimeError: its certificate cannot be read"}
    assert len(said) == 2  # by the server and by the client
