"""Each of examples/ as a person runs it: killed, run again, and nothing of what was recorded happens a second time.

Two ledgers are kept outside of Nexum: what the stand-in model was asked, and what the examples' tools print when they
are really executed (a line that begins with two spaces).
"""

import ast
import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stand_in
from agents import SQLiteSession
from command import nexum
from processes import Finished, Process, environment, eventually, kill_all, run

from nexum_agents.events import counted
from nexum_runtime import Client
from nexum_runtime.server.app import Server, ServerConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KILLED = -signal.SIGKILL
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL")


async def end_of(process: Process) -> Finished:
    return Finished(await process.ended(), process.output, "")


class Stage:
    """A server, and the examples that run in one folder with it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._ledger = folder / "asked"
        self._runs: list[Path] = []

    def environment(self, **changes: str) -> dict[str, str]:
        own = {name: value for name, value in environment().items() if name not in KEYS}
        of_examples = {"NEXUM_ADDRESS": self.address, "LEDGER": str(self._ledger), "STAND_IN_SECONDS": "0"}
        return own | of_examples | changes

    def start(self, name: str | Path, *arguments: str, typed: str = "", **changes: str) -> Process:
        command: list[str | Path] = [sys.executable, EXAMPLES / name, *arguments]
        output = self.folder / f"output-{len(self._runs)}"
        process = Process(command, output, env=self.environment(**changes), cwd=self.folder, typed=typed)
        process.start()
        self._runs.append(output)
        return process

    async def run(self, name: str | Path, *arguments: str, typed: str = "", **changes: str) -> Finished:
        return await end_of(self.start(name, *arguments, typed=typed, **changes))

    @property
    def asked(self) -> list[Any]:
        """What the model was asked, each time that it was."""
        return [json.loads(line) for line in self._ledger.read_text().splitlines()] if self._ledger.exists() else []

    @property
    def happened(self) -> list[str]:
        """What the tools did, over all runs."""
        return [line for output in self._runs for line in re.findall(r"(?m)^  (\w.*)$", output.read_text())]

    async def recorded(self, prefix: str) -> int:
        """How many executions that have completed have an id that begins so."""
        async with Client(self.address) as client:
            return len(await client.executions(prefix, limit=100, status="COMPLETED"))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0))
    await server.start()
    yield Stage(tmp_path, f"localhost:{server.port}")
    kill_all()
    await server.stop()


def points(most: int, name: str = "task-claimed") -> list[str]:
    return [f"{name}:{number}" for number in range(1, most + 1)]


# What they all are


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_run_and_what_one_will_see(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    told = ast.get_docstring(ast.parse(source)) or ""
    if path.name != "stand_in.py":
        assert path.name == "notebook.py" or f"python examples/{path.name}" in told
        assert "You will see" in told


def test_the_first_example_is_fifteen_lines_of_code() -> None:
    source = (EXAMPLES / "hello.py").read_text(encoding="utf-8")
    code = source.split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_with_a_key_the_default_model_of_the_sdk_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    assert stand_in.model() is None


# hello.py


async def test_hello_killed_at_each_of_its_steps_goes_on_and_repeats_nothing(stage: Stage) -> None:
    for _ in range(2):  # each run does one thing, and is killed at the next
        assert (await stage.run("hello.py", NEXUM_CRASH_AT="task-claimed:2")).code == KILLED
    for kind in ("stored ✓", "cached ⚡"):
        last = await stage.run("hello.py")
        assert last.code == 0
        assert re.search(rf"turn 2: answers {kind}", last.stdout)
        assert last.stdout.splitlines()[-1] == "It is sunny in Rome."
    assert stage.asked == [["asked", "Rome"], ["asked", "Rome", "It is sunny in Rome."]]
    assert stage.happened == ["asking the weather service about Rome"]


async def test_an_example_is_run_by_the_command_that_it_tells(stage: Stage) -> None:
    command: list[str | Path] = [sys.executable, "-W", "error", EXAMPLES / "hello.py"]
    told = await run(*command, env=stage.environment(NEXUM_TEST_FORKS="0"), cwd=stage.folder)
    assert (told.code, told.stderr) == (0, "")
    assert told.stdout.endswith("It is sunny in Rome.\n")


# research_bot.py


@pytest.mark.parametrize("crash_at", points(11) + points(3, "effect-done"))
async def test_the_research_bot_killed_anywhere_does_only_what_was_not_recorded(stage: Stage, crash_at: str) -> None:
    killed = await stage.run("research_bot.py", NEXUM_CRASH_AT=crash_at)
    assert killed.code == KILLED
    turns, calls = [
        await stage.recorded(f"research-durable-execution/{what}/") for what in ("model-turn", "web_search")
    ]
    asked, happened = len(stage.asked), len(stage.happened)
    again = await stage.run("research_bot.py")
    assert again.code == 0
    assert len(stage.asked) - asked == 8 - turns
    assert len(stage.happened) - happened == 3 - calls
    aspects = ("its history", "its use", "its limits")
    notes = [f"The web knows a lot about durable execution, {aspect}." for aspect in aspects]
    assert "\n".join(["# durable execution", *notes]) in again.stdout
    if turns + calls:
        assert f"{counted(turns, calls)} came from the store" in again.stdout


# chat.py

QUESTIONS = ("tea", "milk")


@pytest.mark.parametrize("crash_at", points(17) + points(12, "effect-done"))
async def test_a_chat_killed_anywhere_is_gone_on_with_and_remembers_each_question_once(
    stage: Stage, crash_at: str
) -> None:
    killed = await stage.run("chat.py", "ann", typed="\n".join(QUESTIONS), NEXUM_CRASH_AT=crash_at)
    assert killed.code == KILLED
    taken = [await stage.recorded(f"ann-{number}/question/") for number in (1, 2)]
    assert {words for _, words, *_ in stage.asked} <= set(QUESTIONS[: sum(taken)]), (
        "a question is kept before it is asked"
    )
    again = await stage.run("chat.py", "ann", typed="\n".join(QUESTIONS[sum(taken) :]))
    assert again.code == 0
    answers = re.findall(r"Desk: (.*)\n(.*)", again.stdout)
    assert answers == [
        ("The handbook has nothing on 'tea'.", ""),
        ("The handbook has nothing on 'milk'.", "(You have asked 2 questions.)"),
    ]
    assert again.stdout.count("You: tea") == taken[0], "what was asked before is shown"
    assert [words for _, words, *results in stage.asked] == ["tea", "tea", "milk", "milk"]
    items: list[Any] = [*await SQLiteSession("ann", stage.folder / "chat.db").get_items()]
    assert [item["content"] for item in items if item.get("role") == "user"] == list(QUESTIONS)
    assert len(items) == 8


async def test_each_chat_is_its_own(stage: Stage) -> None:
    ann = await stage.run("chat.py", "ann", typed="tea")
    bob = await stage.run("chat.py", "bob", typed="milk")
    assert "tea" in ann.stdout
    assert "tea" not in bob.stdout
    assert "(You have asked 2 questions.)" in (await stage.run("chat.py", "ann", typed="rum")).stdout
    assert [words for _, words, *results in stage.asked] == ["tea", "tea", "milk", "milk", "rum", "rum"]


# saga.py

TRIPS = {
    "Rome": "Booked: flight in Rome, hotel in Rome, car in Rome.",
    "Atlantis": "Nothing is booked, as there is no car in Atlantis.",
}
BOOKED = {
    "Rome": ["booked: flight in Rome", "booked: hotel in Rome", "booked: car in Rome"],
    "Atlantis": [
        "booked: flight in Atlantis",
        "booked: hotel in Atlantis",
        "cancelled: hotel in Atlantis",
        "cancelled: flight in Atlantis",
    ],
}
TRIP_POINTS = {"Rome": points(6) + points(4, "effect-done"), "Atlantis": points(8) + points(5, "effect-done")}


SETTLES = r"(?m)^If bookings.txt has it(?: not)?: +nexum resolve '(\S+)' (.*)$"


async def until_a_person_is_asked(stage: Stage, city: str) -> tuple[Finished, list[str]]:
    """Run the saga to its end, answering as a person would who looks into the ledger; and what they were asked."""
    asked: list[str] = []
    while True:
        finished = await stage.run("saga.py", city)
        commands = re.findall(
            r"bookings.txt has it(?: not)?: +nexum resolve '(\S+)' (.*)$", finished.stdout, re.MULTILINE
        )
        if not commands:
            return finished, asked
        assert (finished.code, len(commands)) == (1, 2), finished.stdout
        assert "may or may not have run" in finished.stdout
        (id, it_has), (_, it_has_not) = commands
        booking = it_has.removeprefix("--result '").removesuffix("'")
        is_booked = f"booked: {booking}" in bookings(stage)
        words = ["--result", booking] if is_booked else [it_has_not]
        assert (await nexum(stage.address, "resolve", id, *words)).code == 0
        asked.append(booking)


def bookings(stage: Stage) -> list[str]:
    ledger = stage.folder / "bookings.txt"
    return ledger.read_text().splitlines() if ledger.exists() else []


@pytest.mark.parametrize(("city", "crash_at"), [(city, at) for city, each in TRIP_POINTS.items() for at in each])
async def test_a_trip_is_booked_once_or_cancelled_in_reverse_order_wherever_it_was_killed(
    stage: Stage, city: str, crash_at: str
) -> None:
    killed = await stage.run("saga.py", city, NEXUM_CRASH_AT=crash_at)
    assert killed.code == KILLED
    was_booking = re.search(r"\[Nexum\] book \w+\([^\n]* …\n(?!.*(stored|failed))", killed.stdout) is not None
    finished, asked = await until_a_person_is_asked(stage, city)
    assert finished.code == 0
    assert finished.stdout.splitlines()[-1] == TRIPS[city]
    assert bookings(stage) == BOOKED[city]
    assert [results for _, _, *results in stage.asked] == [[], [TRIPS[city]]], "the model is asked nothing twice"
    assert len(asked) <= 1
    assert bool(asked) or not was_booking, "a person is asked whenever a booking was cut short"


async def test_a_booking_that_a_person_says_was_not_made_is_compensated(stage: Stage) -> None:
    await stage.run("saga.py", "Rome", NEXUM_CRASH_AT="task-claimed:5")
    unknown = await stage.run("saga.py", "Rome")
    (id,) = set(re.findall(r"nexum resolve '(\S+)'", unknown.stdout))
    again = await stage.run("saga.py", "Rome")
    assert again.code == unknown.code == 1, "nothing is guessed, however often it is run"
    assert bookings(stage) == BOOKED["Rome"][:2]
    await nexum(stage.address, "resolve", id, "--failed", "the company is on strike")
    assert (await stage.run("saga.py", "Rome")).stdout.endswith("Nothing is booked, as the company is on strike.\n")
    assert bookings(stage)[2:] == ["cancelled: hotel in Rome", "cancelled: flight in Rome"]


# approvals.py

ASKS = r"(?m)^\[Nexum\] send_email\(.*\) waits for your yes\n.*nexum approve (\S+)$"
TOLD = "Tell Ann that her parcel is late"


async def asked_for_approval(stage: Stage, **changes: str) -> tuple[Process, str]:
    running = stage.start("approvals.py", **changes)
    return running, (await running.says(ASKS))[1]


async def test_an_email_that_is_approved_while_nobody_waits_is_sent_by_the_next_run(stage: Stage) -> None:
    running, id = await asked_for_approval(stage)
    running.kill()
    running, same = await asked_for_approval(stage)
    running.kill()
    assert same == id
    assert (await nexum(stage.address, "approve", id)).stdout == "Approved.\n"
    for _ in range(2):
        finished = await stage.run("approvals.py")
        assert (finished.code, finished.stdout.splitlines()[-1]) == (0, "The e-mail is sent.")
    assert stage.happened == [f"looking up {TOLD}", f"sending: {TOLD}"]
    assert len(stage.asked) == 3


async def test_an_email_that_is_refused_is_not_sent_and_the_model_is_told_why(stage: Stage) -> None:
    running, id = await asked_for_approval(stage)
    await nexum(stage.address, "reject", id, "--reason", "she knows")
    await running.ended()
    assert "This call of send_email was not made." in running.output
    assert "she knows" in running.output.splitlines()[-1]
    assert stage.happened == [f"looking up {TOLD}"]


@pytest.mark.parametrize("crash_at", points(6) + points(3, "effect-done"))
async def test_an_email_is_asked_for_and_sent_at_most_once_wherever_its_agent_was_killed(
    stage: Stage, crash_at: str
) -> None:
    async def approved(**changes: str) -> Finished:
        running = stage.start("approvals.py", **changes)
        await eventually(lambda: re.search(ASKS, running.output) or not running.alive)
        if match := re.search(ASKS, running.output):
            await nexum(stage.address, "approve", match[1])
        return await end_of(running)

    assert (await approved(NEXUM_CRASH_AT=crash_at)).code == KILLED
    asked, sent = len(stage.asked), f"sending: {TOLD}" in stage.happened
    finished = await approved()
    assert finished.code == 0
    answer = finished.stdout.splitlines()[-1]
    was_sending = crash_at in ("task-claimed:5", "effect-done:3")
    if was_sending:
        assert answer.startswith("This call of send_email may or may not have run.")
        assert sent is (crash_at == "effect-done:3")
    else:
        assert answer == "The e-mail is sent."
    assert stage.happened.count(f"sending: {TOLD}") == (not was_sending or sent)
    assert len(stage.asked) == 3 >= asked


# fastapi_app.py

PARCEL = "The parcel is on a ship, and comes on Monday."


class Answer:
    """What a client got of a stream of server-sent events."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.whole: str | None = None

    async def get(self, port: str, most_words: int | None = None, session_id: str = "q1") -> "Answer":
        """Read until the end, until so many words, or until the server has gone."""
        asked = {"session_id": session_id, "question": "Where is my parcel?"}
        try:
            async with (
                httpx.AsyncClient(timeout=20) as client,
                client.stream("POST", f"http://127.0.0.1:{port}/ask", json=asked) as response,
            ):
                assert response.headers["content-type"].startswith("text/event-stream")
                kind = ""
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data" and kind == "text":
                        self.words.append(json.loads(value))
                    elif name == "data":
                        self.whole = json.loads(value)
                    if len(self.words) == most_words:
                        break
        except httpx.RemoteProtocolError:
            pass
        return self


async def web_server(stage: Stage, **changes: str) -> tuple[Process, str]:
    running = stage.start("fastapi_app.py", PORT="0", **changes)
    return running, (await running.says(r"Uvicorn running on http://127.0.0.1:(\d+)"))[1]


@pytest.mark.parametrize("crash_at", points(3) + points(1, "effect-done"))
async def test_a_server_that_was_killed_gives_the_whole_answer_when_it_is_asked_again(
    stage: Stage, crash_at: str
) -> None:
    running, port = await web_server(stage, NEXUM_CRASH_AT=crash_at)
    assert (await Answer().get(port)).whole is None
    assert await running.ended() == KILLED
    _, port = await web_server(stage)
    for _ in range(2):
        answer = await Answer().get(port)
        assert "".join(answer.words) == answer.whole == PARCEL
    assert [results for _, _, *results in stage.asked] == [[], [PARCEL]], "nothing is asked twice"
    assert len(stage.happened) == (2 if crash_at == "effect-done:1" else 1)


async def test_a_server_killed_in_the_middle_of_a_word_asks_that_turn_alone_again(stage: Stage) -> None:
    running, port = await web_server(stage, STAND_IN_SECONDS="1")
    first = await Answer().get(port, most_words=3)
    running.kill()
    assert "".join(first.words) == "The parcel is "
    _, port = await web_server(stage)
    answer = await Answer().get(port)
    assert "".join(answer.words) == answer.whole == PARCEL
    assert [results for _, _, *results in stage.asked] == [[], [PARCEL], [PARCEL]]
    assert stage.happened == ["tracking the parcel"]


async def test_a_client_that_went_away_gets_the_whole_answer_when_it_asks_again(stage: Stage) -> None:
    running, port = await web_server(stage, STAND_IN_SECONDS="0.3")
    first = await Answer().get(port, most_words=1)
    assert first.whole is None
    answer = await Answer().get(port)
    assert "".join(answer.words) == answer.whole == PARCEL
    assert stage.happened == ["tracking the parcel"]
    assert len(stage.asked) <= 3, "the turn that was cut short is asked again, and no other"
    assert "Traceback" not in running.output


async def test_two_clients_with_one_session_share_an_answer_and_two_sessions_do_not(stage: Stage) -> None:
    _, port = await web_server(stage)
    answers = await asyncio.gather(*(Answer().get(port, session_id=id) for id in ("q1", "q1", "q2")))
    assert [answer.whole for answer in answers] == [PARCEL] * 3
    assert len(stage.asked) == 4
    assert len(stage.happened) == 2


async def test_a_session_id_that_is_none_is_refused(stage: Stage) -> None:
    _, port = await web_server(stage)
    asked = {"session_id": "a b", "question": "?"}
    async with httpx.AsyncClient() as client:
        response = await client.post(f"http://127.0.0.1:{port}/ask", json=asked)
    assert response.status_code == 422


# what_if.py

LOOKED_UP = ["looking up the weather in Rome"]


async def test_another_prompt_asks_the_model_anew_and_looks_nothing_up(stage: Stage) -> None:
    assert (await stage.run("what_if.py")).stdout.endswith("It rains in Rome.\n")
    assert (stage.happened, len(stage.asked)) == (LOOKED_UP, 2)
    for runs in (1, 2):
        finished = await stage.run("what_if.py", "Answer in one word.")
        answer, advice = finished.stdout.splitlines()[-2:]
        assert (answer, stage.happened, len(stage.asked)) == ("It rains in Rome.", LOOKED_UP, 4), runs
    compared = await nexum(stage.address, *advice.partition("nexum ")[2].split())
    assert "They part at " in compared.stdout
    assert re.search(r"(?m)^ .+weather", compared.stdout), "the call is the same one"


async def test_a_question_that_nothing_was_looked_up_for_ends_with_a_sentence(stage: Stage) -> None:
    await stage.run("what_if.py")
    finished = await stage.run("what_if.py", "Answer in one word.", "Paris")
    assert finished.code == 1
    assert re.search(r'(?m)^weather\({"city":"Paris"}\) is not recorded in session what-if-\w+, and', finished.stdout)
    assert "Traceback" not in finished.stdout
    assert stage.happened == LOOKED_UP


@pytest.mark.parametrize("crash_at", points(2))
async def test_a_trial_that_is_killed_goes_on_and_asks_nothing_that_was_answered(stage: Stage, crash_at: str) -> None:
    await stage.run("what_if.py")
    assert (await stage.run("what_if.py", "Be brief.", NEXUM_CRASH_AT=crash_at)).code == KILLED
    finished = await stage.run("what_if.py", "Be brief.")
    assert "It rains in Rome.\nCompare them with" in finished.stdout
    assert (stage.happened, len(stage.asked)) == (LOOKED_UP, 4)


# notebook.py

KERNEL = Path(__file__).with_name("kernel.py")
SETUP, TWICE, FAILS, REPAIR = "0", "1", "2", "3"


async def cells(stage: Stage, *order: str, **changes: str) -> Finished:
    return await stage.run(KERNEL, str(EXAMPLES / "notebook.py"), *order, **changes)


async def test_a_cell_that_is_run_twice_asks_nobody_twice(stage: Stage) -> None:
    finished = await cells(stage, SETUP, TWICE, TWICE)
    first, second = finished.stdout.split("cell 1\n")[1:]
    assert "stored ✓" in first
    assert re.findall(r"(\S+) [⚡✓]", second) == ["cached"] * 3
    assert first.splitlines()[-1] == second.splitlines()[-1] == "One tea is 3 coins."
    assert stage.happened == ["asking the shop for the price of tea"]


async def test_a_cell_that_failed_goes_on_where_it_broke_when_it_is_run_again(stage: Stage) -> None:
    finished = await cells(stage, SETUP, FAILS, FAILS, REPAIR, FAILS)
    assert finished.stdout.count("ConnectionError: The network is away: run the next cell.") == 2
    assert finished.stdout.endswith("One coffee is 6 coins. One cocoa is 5 coins.\n")
    assert stage.happened == [f"asking the shop for the price of {thing}" for thing in ("coffee", "cocoa")]
    assert len(stage.asked) == 4


@pytest.mark.parametrize("crash_at", points(9))
async def test_a_kernel_that_was_restarted_runs_all_cells_again_and_asks_nothing_that_was_recorded(
    stage: Stage, crash_at: str
) -> None:
    order = (SETUP, TWICE, FAILS, REPAIR, FAILS)
    assert (await cells(stage, *order, NEXUM_CRASH_AT=crash_at)).code == KILLED
    finished = await cells(stage, *order)
    assert finished.stdout.endswith("One coffee is 6 coins. One cocoa is 5 coins.\n")
    assert stage.happened == [f"asking the shop for the price of {thing}" for thing in ("tea", "coffee", "cocoa")]
    assert len(stage.asked) == 6
