"""The demo as a person runs it: real processes, killed in the middle, run again."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from processes import Finished, NexumDev, Process, environment, eventually, run

from nexum_runtime import Client
from offline.beside import worker_beside

ROOT = Path(__file__).parents[2]
SHORT_LEASE_MS = "2000"  # of a worker that is to be killed; a shorter one may expire while it lives, under load
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "GEMINI_API_KEY", "GOOGLE_API_KEY", "MODEL", "SESSION_ID")


class Stage:
    """A server, workers and demos that share a folder, a ledger of real tool executions, and a gate they pass."""

    def __init__(self, folder: Path, nexum: NexumDev) -> None:
        self.folder, self.nexum = folder, nexum
        self.ledger, self.gate = folder / "ledger", folder / "gate"
        self.gate.touch()

    def environment(self, **changes: str) -> dict[str, str]:
        clean = {name: value for name, value in environment().items() if name not in KEYS}
        own = {"LEDGER": str(self.ledger), "GATE": str(self.gate), "OFFLINE_WEB_DELAY_MS": "0"}
        return clean | {"NEXUM_ADDRESS": self.nexum.address} | own | changes

    def worker(self, **changes: str) -> Process:
        name = f"worker-{len(list(self.folder.glob('worker-*')))}.log"
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("ledger_worker.py"), "--offline"]
        worker = Process(command, self.folder / name, env=self.environment(**changes), cwd=self.folder)
        worker.start()
        return worker

    def demo_command(self, *arguments: str) -> list[str | Path]:
        return [sys.executable, ROOT / "demo.py", *arguments]

    async def demo(self, *arguments: str, **changes: str) -> Finished:
        return await run(*self.demo_command(*arguments), env=self.environment(**changes), cwd=self.folder)

    def demo_process(self, *arguments: str, **changes: str) -> Process:
        env = self.environment(**changes)
        demo = Process(self.demo_command(*arguments), self.folder / "demo.log", env=env, cwd=self.folder)
        demo.start()
        return demo

    @property
    def executions(self) -> list[str]:
        """Each real execution of a tool, as it was written outside of Nexum."""
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with NexumDev(tmp_path) as nexum:
        yield Stage(tmp_path, nexum)


def answer(output: str) -> str:
    """What stands between the last line of a call and the closing words."""
    return re.split(r"\n(?:⚡ \d|Run it again)", output.split("[Nexum]")[-1].partition("\n")[2])[0].strip()


def ended_calls(output: str, how: str) -> int:
    """How many lines of calls say `stored` or `cached`."""
    return len(re.findall(rf"^\[Nexum\] \w+\(.* {how}", output, re.MULTILINE))


def ended_turns(output: str, how: str) -> int:
    """How many lines of the model's turns say so."""
    return len(re.findall(rf"^\[Nexum\] turn \d+.* {how}", output, re.MULTILINE))


def started_before_they_ended(output: str) -> bool:
    """Whether all turns and calls that were stored in this run said before that they had begun."""
    lines = [re.sub(r"(turn \d+): [\w, ]+ stored", r"\1 stored", line) for line in output.splitlines()]
    stored = {number: line.partition(" stored ✓")[0] for number, line in enumerate(lines) if " stored ✓ " in line}
    return bool(stored) and all(f"{line} …" in lines[:number] for number, line in stored.items())


def completed(listed: str, what: str) -> int:
    """How many executions with `what` in their id `nexum ps` lists as COMPLETED."""
    return sum(what in line and "COMPLETED" in line for line in listed.splitlines())


def no_traceback(finished: Finished) -> bool:
    return "Traceback" not in finished.stdout + finished.stderr


async def test_a_crashed_run_goes_on_where_it_broke_and_repeats_nothing(stage: Stage) -> None:
    stage.worker()
    uninterrupted = await stage.demo(SESSION_ID="whole")
    assert uninterrupted.code == 0, uninterrupted
    calls = len(stage.executions)

    crashed = await stage.demo("--crash-after", "2", SESSION_ID="s1")
    assert crashed.code == -signal.SIGKILL
    assert len(stage.executions) == calls + 2
    assert ended_calls(crashed.stdout, "stored") == 2
    assert ended_turns(crashed.stdout, "stored") == 1
    assert "Stored so far: 1 turn and 2 calls. Go on with:" in crashed.stdout

    second = await stage.demo(SESSION_ID="s1")
    assert second.code == 0
    assert ended_calls(second.stdout, "cached") == 2
    assert ended_calls(second.stdout, "stored") == calls - 2
    assert (ended_turns(second.stdout, "cached"), ended_turns(second.stdout, "stored")) == (1, 2)
    assert started_before_they_ended(second.stdout)
    assert len(stage.executions) == 2 * calls
    assert answer(second.stdout) == answer(uninterrupted.stdout) != ""

    third = await stage.demo(SESSION_ID="s1")
    assert (ended_turns(third.stdout, "cached"), ended_calls(third.stdout, "cached")) == (3, calls)
    assert third.stdout.count("[Nexum]") == 3 + calls, "what is replayed is one line each"
    assert len(stage.executions) == 2 * calls
    assert answer(third.stdout) == answer(uninterrupted.stdout)
    assert f"3 turns and {calls} calls came from the store" in third.stdout


async def test_a_demo_that_calls_no_tool_answers_from_a_fork_and_ends_at_a_call_that_is_new(stage: Stage) -> None:
    worker = stage.worker()
    first = await stage.demo(SESSION_ID="s1")
    executions = len(stage.executions)
    worker.kill()
    async with Client(stage.nexum.address) as client:
        await client.fork_session("s1", "s2")
    again = await stage.demo("--tools", "cached-only", SESSION_ID="s2")
    assert (again.code, answer(again.stdout)) == (0, answer(first.stdout))
    assert "demo.py --tools cached-only" in again.stdout
    other = await stage.demo("--tools", "cached-only", "What is a saga?", SESSION_ID="s2")
    assert other.code != 0
    assert 'is not recorded in session s2, and tools="cached-only" makes no call that is not.' in other.stdout
    assert "Traceback" not in other.stdout + other.stderr
    assert len(stage.executions) == executions


async def test_without_durable_turns_the_model_is_asked_again_and_its_calls_come_from_the_store(stage: Stage) -> None:
    stage.worker()
    crashed = await stage.demo("--no-durable-model", "--crash-after", "2", SESSION_ID="s1")
    assert "Stored so far: 2 calls. Go on with:" in crashed.stdout
    assert "demo.py --no-durable-model" in crashed.stdout
    second = await stage.demo("--no-durable-model", SESSION_ID="s1")
    assert second.code == 0
    assert (ended_calls(second.stdout, "cached"), ended_calls(second.stdout, "stored")) == (2, 3)
    assert "[Nexum] turn" not in second.stdout
    assert "⚡ 2 calls came from the store" in second.stdout
    assert "Run it again, and every call is cached ⚡:" in second.stdout
    assert len(stage.executions) == 5


async def test_another_question_in_a_session_is_another_run_beside_the_first(stage: Stage) -> None:
    stage.worker()
    first = await stage.demo("What is a lease?", SESSION_ID="s1")
    other = await stage.demo("What is a saga?", SESSION_ID="s1")
    assert (first.code, other.code) == (0, 0)
    assert ended_turns(other.stdout, "stored") == 3
    assert ended_turns(other.stdout, "cached") == 0
    again = await stage.demo("What is a lease?", SESSION_ID="s1")
    assert (ended_turns(again.stdout, "cached"), ended_turns(again.stdout, "stored")) == (3, 0)
    assert answer(again.stdout) == answer(first.stdout) != answer(other.stdout)


async def test_a_worker_killed_while_its_tools_run_is_replaced_and_the_demo_never_notices(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(LEASE_MS=SHORT_LEASE_MS)
    demo = stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 2, "two tools running")
    worker.kill()
    stage.gate.touch()
    stage.worker()
    assert await demo.ended() == 0, demo.output
    assert ended_calls(demo.output, "stored") == 5
    assert len(stage.executions) == 5 + 2, "only what was cut in the middle is executed again"


async def test_a_server_killed_while_calls_wait_costs_a_pause_and_nothing_else(stage: Stage) -> None:
    stage.gate.unlink()
    stage.worker()
    demo = stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 2, "two tools running")
    async with Client(stage.nexum.address) as client:  # they may run a moment before that is recorded

        async def recorded() -> bool:
            return len(await client.executions("s1/web_search/")) == 2

        await eventually(recorded)
    stage.nexum.kill()
    stage.gate.touch()
    await demo.says("the Nexum server does not answer")
    await stage.nexum.restart()
    assert await demo.ended() == 0, demo.output
    assert ended_calls(demo.output, "stored") == 5
    assert len(stage.executions) == 5, "a living worker's tool is not run twice because the server died"


async def test_a_demo_killed_while_a_tool_runs_finds_its_result_when_it_is_run_again(stage: Stage) -> None:
    stage.gate.unlink()
    stage.worker()
    demo = stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 2, "two tools running")
    demo.kill()
    stage.gate.touch()
    again = await stage.demo(SESSION_ID="s1")
    assert again.code == 0
    assert len(stage.executions) == 5


async def test_with_no_worker_the_demo_says_what_it_waits_for_and_goes_on_when_one_comes(stage: Stage) -> None:
    demo = stage.demo_process()
    await demo.says(r"no worker has taken this call yet: is a worker running that has this tool\?")
    stage.worker()
    assert await demo.ended() == 0, demo.output
    assert demo.output.count("no worker has taken") == 1


async def test_without_a_key_the_mode_says_so_and_the_answer_cites_the_pages_that_were_read(stage: Stage) -> None:
    stage.worker()
    finished = await stage.demo("What", "is", "durable", "execution?")
    assert "offline, as neither OPENAI_API_KEY nor GEMINI_API_KEY is set" in finished.stdout
    read = [json.loads(line)[1]["url"] for line in stage.executions if "visit_webpage" in line]
    cited = re.findall(r"https://offline\.example/\S+", answer(finished.stdout))
    assert len(read) >= 2
    assert cited
    assert set(cited) <= set(read)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"NEXUM_ADDRESS": "localhost:1"}, "No Nexum server answers at localhost:1. Start one with `nexum dev`"),
        ({"NEXUM_ADDRESS": "nonsense"}, "The Nexum address is 'nonsense'; it must be host:port"),
        ({"NEXUM_ADDRESS": "no-such-host.invalid:50051"}, "No Nexum server answers at no-such-host.invalid:50051"),
        ({"SESSION_ID": "no/slash"}, "SESSION_ID is 'no/slash'; it must be 1 to 64 characters of"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
async def test_what_a_user_can_get_wrong_is_answered_in_one_sentence(
    stage: Stage, changes: dict[str, str], sentence: str
) -> None:
    finished = await stage.demo(**changes)
    assert finished.code == 1
    assert sentence in finished.stdout + finished.stderr
    assert no_traceback(finished)


async def test_the_command_it_prints_resumes_the_session(stage: Stage) -> None:
    stage.worker()
    question = "What's a lease?  (in `one` sentence)"
    first = await stage.demo(question, SESSION_ID="s1")
    command = first.stdout.strip().splitlines()[-1].strip()
    again = await run("bash", "-c", command, env=stage.environment(), cwd=stage.folder)
    assert again.code == 0, again
    assert question in again.stdout
    assert ended_calls(again.stdout, "stored") == 0
    assert ended_calls(again.stdout, "cached") == ended_calls(first.stdout, "stored")


@pytest.mark.parametrize("moment", ["Question", r"\[Nexum\]", "no worker has taken"])
async def test_an_interrupted_run_says_how_to_go_on(stage: Stage, moment: str) -> None:
    demo = stage.demo_process(SESSION_ID="s1")
    await demo.says(moment)
    demo.send(signal.SIGINT)
    assert await demo.ended() == 130
    assert "Interrupted" in demo.output
    assert "SESSION_ID=s1 " in demo.output
    assert "Traceback" not in demo.output


def children_of(folder: Path) -> list[str]:
    """The command lines of the running processes that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
async def test_one_command_needs_no_server_brings_a_worker_and_leaves_none_behind_even_when_killed(
    tmp_path: Path,
) -> None:
    env = environment(SESSION_ID="s1", OFFLINE_WEB_DELAY_MS="0")
    command = [sys.executable, str(ROOT / "demo.py"), "--worker", "--offline"]
    crashed = await run(*command, "--crash-after", "3", env=env, cwd=tmp_path)
    assert crashed.code == -signal.SIGKILL, crashed
    await eventually(lambda: not children_of(tmp_path), "the end of the worker")
    listed = await run(Path(sys.executable).with_name("nexum"), "ps", "s1/", env=env, cwd=tmp_path)
    assert completed(listed.stdout, "/web_search/") + completed(listed.stdout, "/visit_webpage/") >= 3

    whole = await run(*command, env=env, cwd=tmp_path)
    assert whole.code == 0, whole
    assert ended_calls(whole.stdout, "cached") >= 3, "at least what had completed; more when a call outlived the demo"
    assert ended_calls(whole.stdout, "cached") + ended_calls(whole.stdout, "stored") == 5
    assert "NEXUM" not in whole.stdout.splitlines()[-1], "the command to go on needs no address"
    assert not children_of(tmp_path)
    assert (tmp_path / ".nexum").stat().st_mode & 0o777 == 0o700


async def test_the_worker_beside_the_demo_uses_the_server_that_the_demo_uses(stage: Stage) -> None:
    finished = await stage.demo("--worker", "--offline", SESSION_ID="s1")
    assert finished.code == 0, finished
    shown = await run(Path(sys.executable).with_name("nexum"), "ps", "s1/", env=stage.environment())
    assert completed(shown.stdout, "/web_search/") + completed(shown.stdout, "/visit_webpage/") == 5
    assert completed(shown.stdout, "/model-turn/") == 3
    assert not (stage.folder / ".nexum" / "local.db").exists()


@pytest.mark.parametrize("has_connected", [False, True])
def test_a_worker_beside_is_waited_for_only_if_it_has_connected_and_may_have_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_connected: bool
) -> None:
    """Its imports take seconds, in which it hears no signal, and a run that is all cached has ended before."""
    sent: list[int] = []
    send = subprocess.Popen.send_signal

    def noted(process: "subprocess.Popen[bytes]", number: int) -> None:
        sent.append(number)
        send(process, number)

    monkeypatch.setattr(subprocess.Popen, "send_signal", noted)
    with worker_beside(tmp_path) as runs:
        if has_connected:
            (tmp_path / "worker.log").write_text("Connected to Nexum at localhost:1.\n")
        assert runs(), "so no worker is missed, also before it has asked for work"
    assert not runs()
    assert sent[0] == (signal.SIGTERM if has_connected else signal.SIGKILL)


async def test_output_that_nobody_reads_any_more_ends_neither_the_run_nor_in_a_traceback(stage: Stage) -> None:
    stage.worker()
    command = " ".join(map(str, stage.demo_command()))
    env = stage.environment(SESSION_ID="s1")
    finished = await run("bash", "-c", f"set -o pipefail; {command} | head -1", env=env, cwd=stage.folder)
    assert (finished.code, finished.stderr) == (0, "")
    assert len(stage.executions) == 5, "the run went on to its end"


async def test_a_second_signal_ends_the_worker_at_once_and_without_a_word(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker()
    stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 2, "two tools running")
    worker.send(signal.SIGINT)
    await worker.says("Ctrl-C again stops at once")
    worker.send(signal.SIGINT)
    assert await worker.ended() == -signal.SIGINT
    assert "Traceback" not in worker.output
    stage.gate.touch()


async def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(stage: Stage) -> None:
    (stage.folder / ".nexum").touch()
    finished = await stage.demo("--worker", "--offline")
    assert finished.code == 1
    assert f"Cannot write the worker's log in {stage.folder}/.nexum: File exists." in finished.stdout
    assert no_traceback(finished)


async def test_a_run_that_is_handed_over_ends_although_its_worker_is_killed_and_its_follower_gone(stage: Stage) -> None:
    killed = stage.worker()
    stage.gate.unlink()
    following = stage.demo_process("--detach", SESSION_ID="s1")
    await following.says(r"web_search\(.*\) …")
    killed.kill()
    following.send(signal.SIGINT)
    assert await following.ended() == 130
    stage.gate.touch()
    stage.worker()
    said = re.search(r"\nThe workers go on with it\. Follow it again with: (.+)\n", following.output)
    assert said is not None, following.output
    again = await run("bash", "-c", said[1], env=stage.environment(), cwd=stage.folder)
    assert again.code == 0, again
    assert "[Nexum] the run was cut short: Worker " in again.stdout
    assert (ended_turns(again.stdout, "stored"), "Durable execution" in again.stdout.split("[Nexum]")[-1]) == (3, True)
    asked = [line for line in following.output.splitlines() if line.startswith("[Nexum] turn")]
    assert [line for line in again.stdout.splitlines() if line.startswith("[Nexum] turn")][: len(asked)] == asked
    calls = len(stage.executions)
    in_process = await stage.demo(SESSION_ID="s1")
    assert (in_process.code, len(stage.executions)) == (0, calls), "the same session in one's own process calls nothing"
    refused = await stage.demo("--detach", "--worker")
    assert (refused.code, "--detach takes no other option" in refused.stderr) == (2, True)
