"""`nexum doctor` names what is wrong, against real servers."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backends import sqlite_of
from command import ECHO, GATE, Text, assert_refused, claim, finish, nexum, start, unused
from nexum import workflow
from processes import NexumDev, eventually
from test_failing_store import limit

from nexum_runtime import Client, ServerUnavailable, Worker
from nexum_runtime.cli.base import FAILED, NO_SERVER
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.store.sqlite import SqliteStore, inspection
from nexum_runtime.telling.diagnosis import Finding, findings

SOUND = {"path": "/n.db", "size_bytes": 1, "free_bytes": 10**12, "damage": None, "problem": None, "failure": None}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits has waited for long enough."""
    monkeypatch.setattr("nexum_runtime.telling.diagnosis.PATIENCE_MS", 0)


impatient = pytest.mark.usefixtures("_impatient")


async def diagnosed(address: str) -> dict[str, str]:
    """What it finds: cause → sentence; the exit code says whether any of it is wrong."""
    finished = await nexum(address, "doctor", "--json")
    told = json.loads(finished.stdout)
    wrong = any(each["is_wrong"] for each in told["findings"])
    assert told["well"] is not wrong
    assert finished.code == (FAILED if wrong else 0) or told["server"] is None
    return {each["cause"]: each["text"] for each in told["findings"]}


async def ask_for(address: str, definition: Any) -> None:
    """Be a worker that asks for this workflow, and gets nothing."""
    async with Client(address) as client:
        await client.register(definition)
        await client.poll("w", definition, lease_ms=60_000, wait_ms=0)


async def test_all_is_well_with_a_server_and_a_worker(client: Client, address: str, server: Server) -> None:
    async def run(_: Any) -> Text:
        return Text(text="done")

    host, _, port = address.partition(":")
    worker = Worker([workflow("echo").effect("run", Text, run).build()], host=host, port=int(port))
    working = asyncio.create_task(worker.run())
    assert (await client.execute(ECHO, {}, execution_id="s/e")).status == "COMPLETED"
    finished = await nexum(address, "doctor")
    assert (finished.code, finished.stderr) == (0, "")
    lines = finished.stdout.splitlines()
    assert lines[0].startswith(f"server      {address} answers in ")
    assert lines[1].startswith(f"database    {sqlite_of(server).path} · ")
    assert " · sound · " in lines[1]
    assert lines[2] == "executions  1 completed"
    assert lines[3].startswith("workers     worker-")
    assert lines[3].endswith(f" · asks for echo {ECHO.version_hash[:19]} · 0 tasks under way · waits for one")
    assert lines[4:] == ["✓ All is well."]
    worker.stop()
    await working


async def test_doctor_as_json_has_this_shape(client: Client, address: str, server: Server) -> None:
    await start(client, "s/e")
    await claim(client)
    told = json.loads((await nexum(address, "doctor", "--json")).stdout)
    state = told["server"]
    database = state.pop("database")
    assert (database.pop("size_bytes") > 0, database.pop("free_bytes") > 0) == (True, True)
    assert database == {
        "path": str(sqlite_of(server).path),
        "damage": None,
        "log_problem": None,
        "problem": None,
        "failure": None,
        "failure_ms": None,
    }
    assert state["workers"][0].pop("heard_ms") >= 0
    assert state["running"][0].pop("silent_ms") >= 0
    assert told == {
        "address": address,
        "well": True,
        "findings": [],
        "server": {
            "executions": {"RUNNING": 1},
            "workers": [
                {
                    "worker_id": "worker-1",
                    "asks_for": [{"workflow_id": "echo", "version_hash": ECHO.version_hash}],
                    "waits_for_task": False,
                    "tasks": 1,
                    "standstill": None,
                }
            ],
            "waiting": [],
            "running": [
                {"execution_id": "s/e", "node_id": "run", "attempt": 1, "worker_id": "worker-1", "lease_ms": 60_000}
            ],
            "expired": [],
            "unknown": [],
            "stopped": [],
        },
    }


async def test_no_server_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        finished = await nexum(address, "doctor")
        assert finished.stdout.startswith(f"✗ No Nexum server answers at {address}. Start one with `nexum dev`")
        assert finished.code == NO_SERVER
        told = json.loads((await nexum(address, "doctor", "--json")).stdout)
    assert (told["well"], told["server"], told["findings"][0]["cause"]) == (False, None, "no-server")
    assert_refused(await nexum("localhost", "doctor"), "The Nexum address is 'localhost'; it must be host:port")


@impatient
async def test_no_worker_is_named(client: Client, address: str) -> None:
    await start(client, "s/e")
    found = await diagnosed(address)
    assert list(found) == ["no-worker"]
    version = ECHO.version_hash[:19]
    assert found["no-worker"].startswith(f"1 task of echo {version} has waited for ")
    assert found["no-worker"].endswith(", the first of s/e: no worker is here. Start one for it: python worker.py")
    await ask_for(address, workflow("other").effect("run", Text, unused).build())
    assert "the workers that are here ask only for other. Start one" in (await diagnosed(address))["no-worker"]


async def test_a_task_that_has_only_begun_to_wait_is_no_finding(client: Client, address: str) -> None:
    await start(client, "s/e")
    assert await diagnosed(address) == {}


@impatient
async def test_a_worker_with_another_version_of_the_workflow_is_named(client: Client, address: str) -> None:
    other = workflow("echo").effect("run", Text, unused).effect("more", Text, unused, depends_on=["run"]).build()
    await start(client, "s/e")
    await ask_for(address, other)
    (found,) = (await diagnosed(address)).items()
    assert found[0] == "other-version"
    old, new = ECHO.version_hash[:19], other.version_hash[:19]
    assert f"ask for another version of it, {new}. Start one with the code of this version" in found[1]
    diff = found[1].partition("nexum ")[2].split()
    assert diff == ["diff", "echo", old, new]
    assert "+ more  EFFECT after run" in (await nexum(address, *diff)).stdout


@impatient
async def test_workers_that_are_busy_are_worth_knowing_and_nothing_wrong(client: Client, address: str) -> None:
    await start(client, "s/a")
    await claim(client)
    await start(client, "s/b")
    finished = await nexum(address, "doctor")
    assert finished.code == 0
    assert "the first of s/b: there is 1 worker with 1 task under way. To have more done at once" in finished.stdout


@impatient
async def test_what_waits_for_the_process_that_began_it_is_worth_knowing(client: Client, address: str) -> None:
    with suppress(asyncio.CancelledError):
        async with client.local_effect(ECHO, {"q": 1}, execution_id="s/local"):
            raise asyncio.CancelledError
    found = await eventually(lambda: diagnosed(address))
    assert list(found) == ["local"]
    assert found["local"].endswith("the first of s/local: run the program again that began it, and it goes on.")
    assert (await nexum(address, "doctor")).code == 0


async def test_an_expired_lease_is_named(client: Client, address: str) -> None:
    await start(client, "s/e")
    await claim(client, lease_ms=1_000)

    async def expired() -> str | None:
        found = await diagnosed(address)
        assert set(found) <= {"silent", "lease"}, "until it has expired, its worker is only quiet"
        return found.get("lease")

    said = await eventually(expired)
    assert said.startswith("Worker worker-1 was silent for 1 s. Given up: 1 attempt, the last ")
    assert said.endswith(" ago; what becomes of it: nexum show s/e")
    await client.complete(await claim(client), '{"text": "é"}')
    assert await diagnosed(address) == {}, "it is over"


async def test_an_outcome_that_nobody_knows_is_named(client: Client, address: str) -> None:
    await client.register(ECHO)
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s/e", effect="once"))
    await client.fail(await claim(client, 60_000), "Its worker was stopped.", interrupted=True)
    await executing
    resolve = "nexum resolve s/e --result 'what it returned'"
    said = f"The outcome of s/e is unknown. Find out what happened, and say it: {resolve}"
    assert await diagnosed(address) == {"unknown": said}


async def test_a_session_that_is_stopped_is_named_and_nothing_is_wrong(client: Client, address: str) -> None:
    await start(client, "s1/a")
    await client.stop_session("s1", "ann", "wrong customer")
    said = "Session s1 was stopped by ann: wrong customer; to let it go on: nexum go s1"
    assert await diagnosed(address) == {"stopped": said}
    assert (await nexum(address, "doctor")).code == 0


async def test_an_approval_that_nobody_has_answered_is_named(client: Client, address: str) -> None:
    await start(client, "s/e", GATE)
    said = "s/e waits for a person, at approve; see what for, and answer: nexum approvals s/e"
    assert await diagnosed(address) == {"approval": said}
    assert (await nexum(address, "doctor")).code == 0, "a person who is waited for is nothing that is wrong"


async def test_a_full_disk_is_named_while_it_is_full_and_for_a_while_after(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as dev, Client(dev.address) as client:
        await finish(client, "before")
        limit(dev, 4096)
        found = await diagnosed(dev.address)
        assert list(found) == ["database"]
        said = f"Nothing can be recorded: Cannot use the database {dev.database}: "
        assert found["database"].startswith(said)
        assert "Make room on its disk" in found["database"]
        limit(dev, None)
        found = await diagnosed(dev.address)
        assert found["database"].startswith("Something could not be recorded ")
        assert "Make room on its disk" in found["database"]


async def test_a_result_that_found_no_room_is_named_although_smaller_things_fit(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as dev, Client(dev.address) as client:
        await start(client, "s/e")
        task_id = await claim(client)
        limit(dev, 400_000)
        with pytest.raises(ServerUnavailable):
            await client.complete(task_id, json.dumps({"text": "x" * 1_000_000}))
        assert "Make room on its disk" in (await diagnosed(dev.address))["database"]


async def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "nexum.db")
    server = Server(ServerConfig(tmp_path / "other.db", port=0))
    await store.close()
    await server.store.close()
    with store.path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096)
    told = inspection.inspect(store.path, 0)
    assert told["database"]["damage"]
    told["database"] |= {"problem": None, "failure": None}
    (found,) = findings(told | {"workers": []}, [])
    assert found.text.startswith(f"The database {store.path} is damaged: ")
    assert f"sqlite3 {store.path} .recover" in found.text


def test_a_worker_that_has_gone_silent_is_named_before_its_lease_ends() -> None:
    running = {"execution_id": "s/e", "worker_id": "w", "lease_ms": 10_000, "silent_ms": 4_000}
    assert list(findings({"database": SOUND, "running": [running]}, [])) == [], "it may speak yet"
    (found,) = findings({"database": SOUND, "running": [running | {"silent_ms": 7_000}]}, [])
    assert found == Finding(
        "silent",
        "Worker w has not been heard of for 7.0 s, and has s/e: it is given up in 3.0 s. "
        "Start another one: python worker.py",
    )
    (found,) = findings({"database": SOUND, "running": [running | {"silent_ms": 13_000}]}, [])
    assert (found.cause, found.is_wrong) == ("lease", True)


def test_a_disk_that_is_almost_full_is_named() -> None:
    (found,) = findings({"database": SOUND | {"free_bytes": 5_000_000}}, [])
    assert found.text.startswith("The disk of /n.db has 4.8 MiB free; make room on it")


async def test_a_worker_that_only_says_that_it_lives_is_here(client: Client, address: str) -> None:
    await client.heartbeat("worker-9", [])
    await client.heartbeat("process-1-a", [])
    (worker,) = (await client.inspect())["workers"]
    assert (worker["worker_id"], worker["asks_for"], worker["waits_for_task"]) == ("worker-9", [], False)


async def test_what_a_worker_calls_itself_cannot_move_the_terminal(client: Client, address: str) -> None:
    evil = "\x1b]0;title\x07[bold]"
    await client.register(ECHO)
    await client.poll(evil, ECHO, lease_ms=60_000, wait_ms=0)
    told = (await nexum(address, "doctor")).stdout
    assert r"\u001b]0;title\u0007[bold] · asks for echo" in told
