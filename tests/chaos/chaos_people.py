"""What people do with sessions while processes die, and what must be true of it: for chaos.py.

They answer questions, and take back what a session has recorded. These sessions have calls of their own, apart from
those that chaos.py checks in the end.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos_client import Call
from chaos_tools import DEADLINE_SECONDS, QUESTIONS

from nexum_runtime import Client, NexumError
from nexum_runtime.cli.base import OPEN

PEOPLE = ("ann", "bob")  # who answer at the same moment, each something else
PAUSE_SECONDS = 0.05

History = dict[str, Any]
Answers = dict[str, list[tuple[str, str]]]  # label → (kind, value) of every answer that a client was told, in order


async def answer_all(address: str, session: str, calls: list[Call]) -> dict[str, set[str]]:
    """Answer, or refuse, each of the questions that somebody has to, however often the server dies meanwhile.

    Returns by label what was acknowledged.
    """
    open = {call.label: call.tool for call in calls if call.tool in ("answered", "refused")}
    acknowledged: dict[str, set[str]] = defaultdict(set)
    async with Client(address) as people:
        while open:
            with suppress(NexumError):  # it is dead, and started again
                for waiting in await people.approvals():
                    if waiting.execution_id.startswith(f"{session}/"):
                        (history,) = [each async for each in people.history(waiting.execution_id)]
                        if (label := history["input"]["question"]) in open:
                            acknowledged[label] |= await _answer(people, waiting, label, open[label])
                histories = [history async for history in people.history(f"{session}/")]
                for history in histories:
                    if history["status"] not in OPEN:
                        open.pop(history["input"]["question"], None)
            await asyncio.sleep(PAUSE_SECONDS)
    return acknowledged


async def _answer(people: Client, waiting: Any, label: str, tool: str) -> set[str]:
    """All of them at the same moment. Returns what was acknowledged."""
    say = people.approve if tool == "answered" else people.reject
    of_each = [answer_of(who, label) for who in PEOPLE]
    words = await asyncio.gather(
        *(say(waiting.execution_id, waiting.node_id, who, text) for who, text in zip(PEOPLE, of_each, strict=True)),
        return_exceptions=True,
    )
    return {text for text, word in zip(of_each, words, strict=True) if word in ("Answered.", "Rejected.")}


def answer_of(who: str, label: str) -> str:
    return f"what {who} says of {label}"


def told(paths: list[Path]) -> Answers:
    answers: Answers = defaultdict(list)
    for path in paths:
        for line in path.read_text().splitlines():
            answer = json.loads(line)
            answers[answer["label"]].append((answer["kind"], answer["value"]))
    return answers


def check_questions(
    calls: list[Call], histories: list[History], answers: Answers, acknowledged: dict[str, set[str]]
) -> Iterator[str]:
    """What is wrong. Each was asked once, and answered once; everybody was told the answer, and nothing else."""
    by_label = defaultdict(list)
    for history in histories:
        by_label[history["input"]["question"]].append(history)
    for call in calls:
        if len(by_label[call.label]) != 1:
            yield f"{call.label} has {len(by_label[call.label])} executions"
            continue
        events = by_label[call.label][0]["events"]
        types = [event["type"] for event in events]
        if types not in LEGAL[call.tool]:
            yield f"{call.label} ({call.tool}) has the events {types}"
            continue
        if len(set(answers[call.label])) != 1:
            yield f"of {call.label} was told {set(answers[call.label])}"
            continue
        (kind, value) = answers[call.label][0]
        if kind != ("result" if call.tool in ("answered", "by_default") else "failed"):
            yield f"of {call.label} ({call.tool}) was told {kind}: {value}"
        if call.tool in ("answered", "refused"):
            said = {text for who in PEOPLE if (text := answer_of(who, call.label)) in value}
            if len(said) != 1 or not acknowledged[call.label] <= said:
                yield f"of {call.label} was told {value!r}, and acknowledged was {acknowledged[call.label]}"
        else:
            asked, ended = events[1], events[2]
            if asked["due_at_ms"] - asked["at_ms"] != round(DEADLINE_SECONDS * 1000):
                yield f"the time for {call.label} is another one than was said: {asked}"
            if ended["at_ms"] < asked["due_at_ms"]:
                yield f"the time for {call.label} was over too early: {ended}"
            if (QUESTIONS[call.tool].get("default") or "Nobody answered within") not in value:
                yield f"of {call.label} was told {value!r}"


BEGUN = ["ExecutionStarted", "ApprovalRequested"]
LEGAL = {
    "answered": [[*BEGUN, "TaskAnswered", "ExecutionCompleted"]],
    "refused": [[*BEGUN, "TaskRejected", "ExecutionFailed"]],
    "by_default": [[*BEGUN, "DeadlinePassed", "ExecutionCompleted"]],
    "in_vain": [[*BEGUN, "DeadlinePassed", "ExecutionFailed"]],
}


async def histories_of(client: Client, session: str) -> list[History]:
    """In the order in which they were started, each with its outputs."""
    outputs = await client.journal(f"{session}/")
    histories = [history async for history in client.history(f"{session}/")]
    return [history | {"outputs": outputs.get(history["execution_id"], {})} for history in histories]


def check_taken_back(before: list[History], cut: int, kept: list[History], record: list[History]) -> Iterator[str]:
    """What is wrong right after a session was taken back from `cut` on: nothing of it is lost or changed."""
    if kept != before[:cut]:
        yield f"what was to stay is {kept}, and was {before[:cut]}"
    as_before = []
    for history in record:
        *events, last = history["events"]
        if last["type"] != "ExecutionTakenBack":
            yield f"the last event of {history['execution_id']} is {last}"
        session, _, rest = history["execution_id"].partition("/")
        as_before.append(history | {"execution_id": f"{session.partition('~')[0]}/{rest}", "events": events})
    if as_before != before[cut:]:
        yield f"what was taken back reads {as_before}, and was {before[cut:]}"


def check_done_anew(
    before: list[History], cut: int, after: list[History], nonces: set[str], answers: Answers
) -> Iterator[str]:
    """What is wrong when it has run again: what had stayed was told again, what was taken back was done anew.

    `nonces` are those of the effects since then.
    """
    now = {history["execution_id"]: history for history in after}
    if after[:cut] != before[:cut]:
        yield f"what had stayed is {after[:cut]}, and was {before[:cut]}"
    if now.keys() != {history["execution_id"] for history in before}:
        yield f"it has {sorted(now)} now"
        return
    for number, was in enumerate(before):
        label, history = was["input"]["tool_args"]["label"], now[was["execution_id"]]
        last = answers[label][-1]
        if history["status"] != "COMPLETED":
            continue
        (output,) = history["outputs"].values()
        if last != ("result", output["result"]):
            yield f"of {label} was told {last}, and recorded is {output}"
        if number >= cut and output["result"] not in nonces:
            yield f"{label} was taken back, and its result is that of no effect since then: {output}"
