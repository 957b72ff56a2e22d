"""The metrics as Prometheus gets them: real processes, scraped over HTTP, read by its own parser."""

import asyncio
import platform
import re
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from command import ECHO, claim, finish, start
from processes import NEXUM, NexumDev, environment, eventually, run
from prometheus_client.parser import text_string_to_metric_families
from test_demo import ROOT, Stage
from test_guard import Pem, pem

from nexum_agents import submit_tool_call
from nexum_runtime import Client, ServerUnavailable
from nexum_runtime.server.app import Server, ServerConfig, Tls
from nexum_runtime.server.web.scrape import CONNECTIONS_LIMIT

__all__ = ["pem"]

OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
TOKEN = "correct-horse-battery-staple"


async def fetch(
    url: str, *, context: ssl.SSLContext | None = None, method: str = "GET", **headers: str
) -> tuple[int, str]:
    """Status and body."""

    def ask() -> tuple[int, str]:
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, context=context) as response:
                assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def scrape(url: str) -> dict[str, float]:
    """`{"nexum_tasks{status=READY,…}": value}` of all samples."""
    _, text = await fetch(url)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name + _labels(sample.labels): sample.value for sample in samples}


def _labels(labels: dict[str, str]) -> str:
    return f"{{{','.join(f'{label}={value}' for label, value in labels.items())}}}" if labels else ""


def url_of(server: Server) -> str:
    return f"http://localhost:{server.metrics_port}/metrics"


@pytest.fixture
async def server(tmp_path: Path) -> Any:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, metrics_port=0))
    await server.start()
    yield server
    await server.stop()


async def test_calls_by_real_processes_are_counted_and_what_is_under_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NexumDev(tmp_path, "--metrics-port", "0") as nexum:
        url = (await nexum.says(r"metrics at (http://localhost:\d+/metrics)"))[1]
        before = await scrape(url)
        stage = Stage(tmp_path, nexum)
        stage.gate.unlink()
        stage.worker()
        monkeypatch.setenv("NEXUM_ADDRESS", nexum.address)
        calls = [submit_tool_call("web_search", {"query": f"sagas {n}"}, "s1") for n in range(9)]
        results = asyncio.gather(*calls)

        async def all_slots_busy() -> dict[str, float]:
            found = await scrape(url)
            tasks = [found[f"nexum_tasks{{status={status},node_type=EFFECT}}"] for status in ("READY", "RUNNING")]
            return found if tasks == [1, 8] else {}

        under_way = await eventually(all_slots_busy)
        stage.gate.touch()
        await results
        after = await scrape(url)
    ours = version("openai-agents-nexum")
    server = f"{socket.gethostname()}:{nexum.address.rpartition(':')[2]}"
    assert before[f"nexum_build_info{{server={server},version={ours},python={platform.python_version()}}}"] == 1
    assert not any(value for name, value in before.items() if not re.match("nexum_(build|commit|writes)", name))
    assert under_way["nexum_worker_slots{state=busy}"] == 8
    assert under_way["nexum_worker_slots{state=free}"] == 8  # of runs
    assert under_way["nexum_waiting_calls{for=end}"] == 9
    assert after["nexum_executions_started_total"] == after["nexum_executions_ended_total{status=COMPLETED}"] == 9
    assert after["nexum_attempts_started_total"] == after["nexum_attempts_ended_total{outcome=completed}"] == 9
    assert after["nexum_worker_slots{state=free}"] == 16
    assert after["nexum_waiting_calls{for=end}"] == after["nexum_retries_total"] == 0
    assert after["nexum_writes_total"] - before["nexum_writes_total"] >= 18
    commits = after["nexum_commit_seconds_count"]
    assert before["nexum_commit_seconds_count"] < commits <= after["nexum_writes_total"]
    assert after["nexum_commit_seconds_bucket{le=+Inf}"] == commits
    assert after["nexum_commit_seconds_sum"] > 0


async def test_each_way_in_which_attempts_and_executions_end_has_its_count(server: Server, client: Client) -> None:
    await finish(client, "s/done")
    await start(client, "s/again")
    await client.fail(await claim(client), "Its worker was stopped.", interrupted=True)
    await client.fail(await claim(client), "no", retryable=False)
    await start(client, "s/cancelled")
    await client.cancel("s/cancelled")
    await start(client, "s/parked")
    await client.park(await claim(client), ms=60_000)
    waiting = asyncio.create_task(client.poll("worker-1", ECHO, lease_ms=60_000, wait_ms=60_000))

    async def polled() -> dict[str, float]:
        found = await scrape(url_of(server))
        return found if found["nexum_waiting_calls{for=task}"] == 1 else {}

    found = await eventually(polled)
    waiting.cancel()
    counts = {name.removeprefix("nexum_"): int(value) for name, value in found.items() if "_ended_" in name}
    assert counts == {
        "executions_ended_total{status=COMPLETED}": 1,
        "executions_ended_total{status=FAILED}": 1,
        "executions_ended_total{status=CANCELLED}": 1,
        "attempts_ended_total{outcome=completed}": 1,
        "attempts_ended_total{outcome=failed}": 1,
        "attempts_ended_total{outcome=lost}": 1,
        "attempts_ended_total{outcome=returned}": 0,
        "attempts_ended_total{outcome=parked}": 1,
    }
    assert (found["nexum_attempts_started_total"], found["nexum_retries_total"]) == (4, 1)


async def test_what_was_not_committed_is_not_counted(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(client, "s/1")
    before = await scrape(url_of(server))

    async def fails(**_: Any) -> float:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(server.store, "_commit", fails)
        with pytest.raises(ServerUnavailable):
            await client.execute(ECHO, {}, execution_id="s/2", timeout=0.5)
    after = await scrape(url_of(server))
    assert after["nexum_executions_started_total"] == before["nexum_executions_started_total"] == 1
    assert after["nexum_commits_failed_total"] >= 1


async def test_the_docs_name_the_metrics_that_there_are(server: Server) -> None:
    _, text = await fetch(url_of(server))
    served = {}
    for family in text_string_to_metric_families(text):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        served[name] = (family.type, ", ".join(labels), family.documentation)
    listed = re.findall(r"(?m)^\| `(nexum_\w+)`(?: \(([\w, ]+)\))? \| (\w+) \| (.+) \|$", OBSERVABILITY)
    assert {name: (kind, ", ".join(sorted(labels.split(", "))), text) for name, labels, kind, text in listed} == served


async def test_nothing_else_is_served_there(server: Server) -> None:
    other = url_of(server).replace("/metrics", "/")
    assert await fetch(other) == (404, "The metrics are at /metrics.\n")
    assert (await fetch(url_of(server), method="POST"))[0] == 404
    assert await fetch(url_of(server), method="HEAD") == (200, "")
    assert (await fetch(f"{url_of(server)}?name=x"))[0] == 200


async def test_its_health_is_told_to_anyone(tmp_path: Path) -> None:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, metrics_port=0, token="secret-of-the-server"))
    await server.start()
    try:
        assert (await fetch(url_of(server)))[0] == 401
        url = url_of(server).replace("/metrics", "/healthz")
        assert await asyncio.to_thread(lambda: urllib.request.urlopen(url).read()) == b"ok\n"
    finally:
        await server.stop()


async def test_whoever_sends_no_request_keeps_nobody_out_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.web.scrape.REQUEST_SECONDS", 2.0)
    silent = [await asyncio.open_connection("localhost", server.metrics_port) for _ in range(CONNECTIONS_LIMIT)]
    with pytest.raises(OSError, match=r"closed|reset"):
        await fetch(url_of(server))
    for reader, writer in silent:
        assert await reader.read() == b""
        writer.close()
    reader, writer = await asyncio.open_connection("localhost", server.metrics_port)
    writer.write(b"x" * 100_000)
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    assert (await fetch(url_of(server)))[0] == 200


async def test_who_has_no_token_gets_no_metrics_and_tls_is_that_of_the_server(tmp_path: Path, pem: Pem) -> None:
    tls = Tls.read(pem.certificate, pem.key)
    guarded = Server(ServerConfig(tmp_path / "nexum.db", port=0, metrics_port=0, token=TOKEN, tls=tls))
    await guarded.start()
    url = url_of(guarded).replace("http:", "https:")
    trusting = ssl.create_default_context(cafile=str(pem.certificate))
    try:
        for given in ({}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {TOKEN}"}):
            status, body = await fetch(url, context=trusting, **given)
            assert (status, "nexum_" in body) == (401, False)
        status, body = await fetch(url, context=trusting, Authorization=f"Bearer {TOKEN}")
        assert (status, "nexum_build_info" in body) == (200, True)
    finally:
        await guarded.stop()


async def test_a_metrics_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = environment(NEXUM_METRICS_PORT=str(port))
        finished = await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "nexum.db", env=env)
    assert finished.code == 1
    assert finished.stderr == (
        f"Cannot serve metrics on 127.0.0.1:{port}: the port is in use. Choose another --metrics-port.\n"
    )
