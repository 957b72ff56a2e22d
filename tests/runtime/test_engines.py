"""Which engine a process uses, and the one in the process itself: found, shared, killed and taken over."""

import asyncio
import json
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import NEXUM, PATIENCE_SECONDS, TESTS, Finished, NexumDev, Process, environment, eventually, run

from nexum_runtime.engines import host
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.store.sqlite import SqliteStore, files
from nexum_runtime.wire import beside

PROGRAM = str(Path(__file__).with_name("engine_process.py"))


class Folder:
    """Where processes run that need an engine. No server is anywhere."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path = path
        self.database = path / ".nexum" / "local.db"
        self._logs = home
        self._processes = 0
        self.ledger = home / "ledger"
        self.gate = home / "gate"

    def environment(self, **changes: str) -> dict[str, str]:
        own = {"LEDGER": str(self.ledger), "PYTHONPATH": TESTS}
        return environment(**own | changes)

    def process(self, session: str, steps: int, **changes: str) -> Process:
        self._processes += 1
        log = self._logs / f"process-{self._processes}.log"
        command = [sys.executable, PROGRAM, session, str(steps)]
        process = Process(command, log, env=self.environment(**changes), cwd=self.path)
        process.start()
        return process

    async def nexum(self, *arguments: str) -> Finished:
        return await run(NEXUM, *arguments, env=self.environment(), cwd=self.path)

    def executed(self) -> Counter[str]:
        return Counter(self.ledger.read_text().split()) if self.ledger.exists() else Counter()

    def open_gate(self) -> None:
        self.gate.touch()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "folder"
    path.mkdir()
    return Folder(path, tmp_path)


def once_each(*sessions: tuple[str, int]) -> Counter[str]:
    return Counter(f"{session}/{number}" for session, steps in sessions for number in range(steps))


async def test_a_process_that_needs_an_engine_has_it_without_grpc_and_tells_where(folder: Folder) -> None:
    process = folder.process("s", 3)
    assert await process.ended() == 0, process.output
    assert f"Nexum runs in this process, with the database {folder.database}." in process.output
    assert process.output.splitlines()[-1] == f"ended at this process ({folder.database}), with gRPC: False"
    assert stat.S_IMODE(folder.database.stat().st_mode) == 0o600
    assert sorted(each.name for each in folder.database.parent.iterdir()) == ["local.db"]  # nothing is left of it


async def test_what_was_recorded_before_a_kill_is_there_and_the_run_goes_on(folder: Folder) -> None:
    killed = folder.process("s", 5, GATE=str(folder.gate), GATED="3")
    await killed.says("began 3")
    killed.kill()
    folder.open_gate()
    began = time.monotonic()
    again = folder.process("s", 5)
    assert await again.ended() == 0, again.output
    assert time.monotonic() - began < 15, "it did not wait for the lease of the process that was killed"
    assert folder.executed() == once_each(("s", 5)) + Counter(["s/3"])  # which was under way


async def test_an_effect_that_happens_once_is_not_repeated_after_a_kill(folder: Folder) -> None:
    killed = folder.process("s", 1, GATE=str(folder.gate), EFFECT="once")
    await killed.says("began 0")
    killed.kill()
    again = folder.process("s", 1, EFFECT="once")
    assert await again.ended() == 0
    assert "FAILED 0" in again.output
    assert json.loads((await folder.nexum("sessions", "--json")).stdout)["state"] == "UNKNOWN"
    assert folder.executed() == Counter(["s/0"])


async def test_others_find_who_has_the_database_by_a_socket_that_is_the_users_alone(folder: Folder) -> None:
    owner = folder.process("a", 1, GATE=str(folder.gate))
    await owner.says("began 0")
    found = beside.socket_of(folder.database)
    mode = found.lstat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    of_another_server = {"NEXUM_TOKEN": "of-another-server", "NEXUM_TLS_CA": str(folder.path / "none.pem")}
    other = folder.process("b", 2, **of_another_server)
    assert await other.ended() == 0, other.output
    assert f"ended at unix:{found}, with gRPC: True" in other.output
    mode = found.lstat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    folder.open_gate()
    assert await owner.ended() == 0
    assert "with gRPC: True" in owner.output  # somebody has come
    assert folder.executed() == once_each(("a", 1), ("b", 2))


@pytest.mark.parametrize("times", range(3))
async def test_the_database_of_one_that_is_killed_is_taken_over_at_once(folder: Folder, times: int) -> None:
    owner = folder.process("a", 1, GATE=str(folder.gate))
    await owner.says("began 0")
    others = [folder.process(f"b{n}", 3, GATE=str(folder.gate), GATED="2") for n in range(2)]
    for other in others:
        await other.says("began 2")
    owner.kill()
    killed = time.monotonic()
    folder.open_gate()
    for other in others:
        assert await other.ended() == 0, other.output
    assert time.monotonic() - killed < 5
    assert sum("Nexum runs in this process" in other.output for other in others) in (1, 2)  # the second one after it
    again = folder.process("a", 1)
    assert await again.ended() == 0, again.output
    assert folder.executed() == once_each(("a", 1), ("b0", 3), ("b1", 3)) + Counter(["a/0"])


async def test_one_that_ends_leaves_the_database_to_those_that_go_on(folder: Folder) -> None:
    owner = folder.process("a", 1, GATE=str(folder.gate))
    await owner.says("began 0")
    other = folder.process("b", 200)
    await other.says("COMPLETED 20")
    folder.open_gate()
    assert await owner.ended() == 0
    assert await other.ended() == 0, other.output
    assert folder.executed() == once_each(("a", 1), ("b", 200))


@pytest.mark.parametrize("times", range(5))
async def test_of_two_that_begin_at_the_same_moment_one_makes_the_file_and_both_work(
    folder: Folder, times: int
) -> None:
    both = [folder.process(name, 20) for name in ("a", "b")]
    for process in both:
        assert await process.ended() == 0, process.output
    assert folder.executed() == once_each(("a", 20), ("b", 20))


async def test_a_server_waits_for_one_that_has_just_taken_the_database_and_does_not_listen_yet(folder: Folder) -> None:
    owner = folder.process("a", 1, GATE=str(folder.gate), DOOR_SECONDS="1")
    await eventually(lambda: beside.owner_of(folder.database) is not None, "an owner")
    async with NexumDev(folder.path, database=folder.database):
        folder.open_gate()
        assert await owner.ended() == 0, owner.output


async def test_event_loops_in_several_threads_share_one_engine(folder: Folder) -> None:
    process = folder.process("s", 10, THREADS="5")
    assert await process.ended() == 0, process.output
    assert process.output.count("Nexum runs in this process") == 1
    assert folder.executed() == once_each(*((f"s-{n}", 10) for n in range(5)))


async def test_a_lease_outlives_a_tool_that_blocks_the_event_loop(folder: Folder) -> None:
    process = folder.process("s", 1, EFFECT="once", BLOCKS="3", KEEP_SECONDS="0.2")
    assert await process.ended() == 0
    assert "COMPLETED 0" in process.output


async def test_a_forked_child_has_a_connection_to_the_engine_of_its_parent(folder: Folder) -> None:
    process = folder.process("s", 3, FORK="1")
    assert await process.ended() == 0, process.output
    assert f"ended at unix:{beside.socket_of(folder.database)}" in process.output
    assert process.output.count("Nexum runs in this process") == 1
    assert folder.executed() == once_each(("s-parent", 1), ("s", 3), ("s-after", 1))


async def test_a_forked_child_whose_parent_has_gone_says_that_it_cannot_run_the_engine(folder: Folder) -> None:
    process = folder.process("s", 3, FORK="orphan")
    await process.ended()
    await eventually(lambda: "ForkedWhileConnected" in process.output, process.output)
    assert "forked from one that ran the Nexum engine itself and has gone" in process.output
    assert folder.executed() == once_each(("s-parent", 1))


# Commands


async def test_commands_find_a_session_while_it_runs_and_after_it_was_killed(folder: Folder) -> None:
    process = folder.process("s", 2, GATE=str(folder.gate), GATED="1")
    await process.says("began 1")
    assert (await folder.nexum("ps")).stdout.count("s/") == 2
    process.kill()
    before = sorted(each.name for each in folder.database.parent.iterdir())
    for arguments in (["sessions"], ["ps"], ["show", "s"], ["versions", "step"]):
        finished = await folder.nexum(*arguments)
        assert (finished.code, finished.stderr) == (0, ""), arguments
        assert finished.stdout
    assert sorted(each.name for each in folder.database.parent.iterdir()) == before  # it was only read
    stopped = await folder.nexum("stop", "s", "--reason", "enough")
    assert stopped.code == 0, stopped.stderr
    again = folder.process("s", 2)
    assert await again.ended() == 1
    assert "stopped" in again.output.splitlines()[-1]
    assert (await folder.nexum("go", "s")).code == 0
    folder.open_gate()
    again = folder.process("s", 2)
    assert await again.ended() == 0, again.output


async def test_a_session_that_runs_is_stopped_by_a_command(folder: Folder) -> None:
    process = folder.process("s", 2, GATE=str(folder.gate), GATED="1")
    await process.says("began 1")
    assert (await folder.nexum("stop", "s")).code == 0
    assert await process.ended() == 1
    assert "SessionStopped" in process.output


@pytest.mark.parametrize("command", [["ps"], ["sessions"], ["show", "s"], ["stop", "s"], ["doctor"]])
async def test_in_a_folder_without_a_database_a_command_says_so_and_makes_none(
    folder: Folder, command: list[str]
) -> None:
    finished = await folder.nexum(*command)
    assert finished.code == 3
    told = finished.stdout + finished.stderr
    assert f"No Nexum is here: there is no database {folder.database}" in told
    assert "start a server with `nexum dev`, or set NEXUM_ADDRESS" in told
    assert list(folder.path.iterdir()) == []


async def test_an_address_that_is_set_is_the_only_one_that_is_tried(folder: Folder) -> None:
    process = folder.process("s", 1, NEXUM_ADDRESS="localhost:1")
    finished = await folder.nexum("ps", "--address", "localhost:1")
    assert (finished.code, "No Nexum server answers at localhost:1." in finished.stderr) == (3, True)
    assert process.alive  # it waits for that server
    assert list(folder.path.iterdir()) == []


async def test_an_engine_that_could_not_begin_leaves_the_database_to_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Engine) -> None:
        raise StoreUnavailable("Cannot use the database: its disk is full.")

    try:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Engine, "take_over", full)
            with pytest.raises(StoreUnavailable, match="its disk is full"):
                await host.opened(tmp_path / "nexum.db")
        assert (await host.opened(tmp_path / "nexum.db")).engine
    finally:
        host.close_all()


async def test_whoever_no_longer_waits_for_an_engine_that_opens_takes_it_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, take_over = threading.Event(), Engine.take_over

    async def slowly(self: Engine) -> None:
        await asyncio.to_thread(opens.wait, PATIENCE_SECONDS)
        await take_over(self)

    monkeypatch.setattr(Engine, "take_over", slowly)
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host.opened(tmp_path / "nexum.db"), 0.05)
        second = asyncio.create_task(host.opened(tmp_path / "nexum.db"))
        opens.set()
        assert (await second).engine
    finally:
        host.close_all()


async def test_what_a_killed_program_executed_is_shown_to_wait_for_it(folder: Folder) -> None:
    killed = folder.process("s", 3, GATE=str(folder.gate), GATED="1")
    await killed.says("began 1")
    assert "its program" not in (await folder.nexum("sessions")).stdout
    killed.kill()
    await killed.ended()
    assert "RUNNING" in (listed := (await folder.nexum("sessions")).stdout), listed
    assert "its program" in listed
    shown = (await folder.nexum("show", "s")).stdout
    assert "waits for its program to be run again" in shown, shown


# A server, and this folder's database


async def test_a_server_of_this_folder_is_found_by_its_database(folder: Folder) -> None:
    async with NexumDev(folder.path, database=folder.database) as nexum:
        process = folder.process("s", 2)
        assert await process.ended() == 0, process.output
        assert f"ended at unix:{beside.socket_of(folder.database)}" in process.output
        assert "s/0" in (await folder.nexum("ps")).stdout
        nexum.terminate()
        assert await nexum.ended() == 0
    assert sorted(each.name for each in folder.database.parent.iterdir()) == ["local.db"]


async def test_a_server_of_another_database_is_found_at_its_port_and_one_that_is_no_port_is_said(
    folder: Folder, tmp_path: Path
) -> None:
    async with NexumDev(tmp_path) as nexum:
        process = folder.process("s", 2, NEXUM_PORT=str(nexum.port))
        assert await process.ended() == 0, process.output
        assert f"ended at localhost:{nexum.port}" in process.output
        assert not folder.database.exists()
        own = folder.process("s", 2)
        assert await own.ended() == 0, own.output
        other = folder.process("s", 3, NEXUM_PORT=str(nexum.port))
        assert await other.ended() == 0, other.output
        assert f"which has another database than this folder's, {folder.database}" in other.output
        assert f"ended at localhost:{nexum.port}" in other.output
    refused = folder.process("s", 2, NEXUM_PORT="50O51")
    assert await refused.ended() == 1
    assert "NEXUM_PORT is '50O51'; it must be a whole number from 0 to 65535." in refused.output


async def test_a_process_goes_on_by_itself_when_the_server_of_its_folder_is_killed(folder: Folder) -> None:
    async with NexumDev(folder.path, database=folder.database) as nexum:
        process = folder.process("s", 3, GATE=str(folder.gate), GATED="2")
        await process.says("began 2")
        nexum.kill()
        folder.open_gate()
        assert await process.ended() == 0, process.output
    assert folder.executed() == once_each(("s", 3))


async def test_a_server_that_starts_gets_the_database_of_who_runs_the_engine_itself(folder: Folder) -> None:
    for effect in ("once", "idempotent"):
        processes = [
            folder.process(f"{effect}-{name}", 30, GATE=str(folder.gate), GATED="5", EFFECT=effect) for name in "abc"
        ]
        for process in processes:
            await process.says("began 5")
        async with NexumDev(folder.path, database=folder.database) as nexum:
            folder.open_gate()
            for process in processes:
                assert await process.ended() == 0, process.output
            assert "COMPLETED" in (await folder.nexum("ps")).stdout
            nexum.terminate()
            await nexum.ended()
        folder.gate.unlink()
        assert folder.executed() == once_each(*((f"{effect}-{name}", 30) for name in "abc"))
        folder.ledger.unlink()


async def test_a_second_server_is_told_which_process_has_the_database(folder: Folder) -> None:
    async with NexumDev(folder.path, database=folder.database) as nexum:
        finished = await folder.nexum("dev", "--port", "0")
        assert finished.code == 1
        assert f"is in use by process {nexum.pid}, which runs the engine for it. Stop that one" in finished.stderr


# Paths


@pytest.mark.parametrize("name", ["with spaces and %41 ö", "l" * 150])
async def test_paths_with_odd_letters_and_longer_than_a_sockets_are_shared_all_the_same(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    folder = Folder(tmp_path / name, tmp_path)
    owner = folder.process("a", 2, GATE=str(folder.gate), GATED="1")
    await owner.says("began 1")
    other = folder.process("b", 2)
    assert await other.ended() == 0, other.output
    assert "Nexum runs in this process" not in other.output
    assert (await folder.nexum("ps")).stdout.count("/") >= 4
    assert stat.S_IMODE(beside.lock_of(folder.database).stat().st_mode) == 0o600
    owner.kill()
    folder.open_gate()
    again = folder.process("a", 2)
    assert await again.ended() == 0, again.output


async def test_a_database_url_names_the_file_for_everybody(folder: Folder, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    process = folder.process("s", 1, NEXUM_DATABASE_URL=url)
    assert await process.ended() == 0, process.output
    finished = await run(NEXUM, "ps", "--json", env=folder.environment(NEXUM_DATABASE_URL=url), cwd=folder.path)
    assert json.loads(finished.stdout)["execution_id"] == "s/0"
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///", "sqlite:///:memory:"])
async def test_a_database_url_that_names_none_is_refused(folder: Folder, url: str) -> None:
    finished = await run(NEXUM, "ps", env=folder.environment(NEXUM_DATABASE_URL=url), cwd=folder.path)
    assert finished.code == 1
    assert f"NEXUM_DATABASE_URL is {url!r}; it must be sqlite:///path" in finished.stderr


async def test_where_no_database_can_be_a_command_says_so_in_a_sentence(folder: Folder) -> None:
    """As in a folder that may only be read, which there is none of for root."""
    for path, why in (("/proc/sys/none/local.db", "No such file or directory"), (str(folder.path), "Is a directory")):
        program = "import asyncio; from nexum_runtime.engines import near; asyncio.run(near().check())"
        environment = folder.environment(NEXUM_DATABASE_URL=f"sqlite:///{path}")
        finished = await run(sys.executable, "-c", program, env=environment, cwd=folder.path)
        assert f"DatabaseUnavailable: Cannot use the database {path}: {why}" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("mounts", "network"),
    [
        ("30 1 0:26 / / rw - ext4 /dev/vda rw\n31 30 0:27 / /data rw - nfs4 nas:/data rw", "nfs4"),
        ("30 1 0:26 / / rw - nfs4 x rw\n32 31 0:28 / /data/local rw - xfs y rw", ""),
        ("30 1 0:26 / / rw - 9p C: rw", "9p"),
        ("30 1 0:26 / / rw shared:1 master:2 - overlay overlay rw", ""),
        ("no list of mounts", ""),
    ],
)
def test_a_network_file_system_is_known_by_the_mounts(
    mounts: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(mounts)
    monkeypatch.setattr(files, "MOUNTS", tmp_path / "mountinfo")
    assert files.network_of(Path("/data/local/nexum.db")) == network


async def test_a_database_on_a_network_file_system_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "network_of", lambda path: "nfs4")
    await SqliteStore(tmp_path / "nexum.db").close()
    assert "is on a network file system (nfs4)" in caplog.text


async def test_an_owner_that_is_paused_is_waited_for(folder: Folder) -> None:
    owner = folder.process("a", 1, GATE=str(folder.gate))
    await owner.says("began 0")
    owner.send(signal.SIGSTOP)
    other = folder.process("b", 1)
    await eventually(lambda: other.alive)
    owner.send(signal.SIGCONT)
    assert await other.ended() == 0, other.output
    assert "Nexum runs in this process" not in other.output


def test_a_reader_changes_nothing_and_refuses_to(tmp_path: Path) -> None:
    async def look(use: Callable[[SqliteStore], object]) -> None:
        store = SqliteStore(tmp_path / "nexum.db", reads_only=True)
        use(store)
        await store.close()

    async def make() -> None:
        await SqliteStore(tmp_path / "nexum.db").close()

    asyncio.run(make())
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    asyncio.run(look(lambda store: store.begin_write(lambda tx: None).exception()))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if "-" not in each.name} == before
