"""What a person can do from the page or by the API: each does what the command of its name does, and says so."""

import json
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.web.reading import Reading
from nexum_runtime.telling.asking import may_have_happened
from nexum_runtime.telling.words import age_ms, counted, pruned

ACTED_ON_LIMIT = 10_000  # executions of a session that one action takes on


@dataclass(frozen=True)
class Field:
    name: str
    label: str
    hint: str = ""
    is_needed: bool = False
    kind: str = "text"  # long, flag, json, choice
    option: str = ""  # of the command; "" when it is an argument


@dataclass(frozen=True)
class Action:
    name: str  # of the command
    label: str
    what: str  # what will happen
    target: str  # the name of the argument it is about: execution_id, session_id, prefix
    fields: tuple[Field, ...]
    run: Callable[[Reading, dict[str, Any]], Awaitable[str]]
    is_grave: bool = False

    def command(self, given: dict[str, Any]) -> str:
        """The command line that does the same."""
        words = ["nexum", self.name, *([str(given[self.target])] if given.get(self.target) else [])]
        for field in self.fields:
            value = given.get(field.name)
            if value in (None, "", False):
                continue
            words += [field.option] if field.kind == "flag" else [*([field.option] if field.option else []), str(value)]
        return shlex.join(words)


BY = Field("by", "Your name", "recorded with it", option="--as")


async def _approve(reading: Reading, given: dict[str, Any]) -> str:
    if given.get("args") not in (None, ""):
        told = {"comment": given.get("comment", ""), "args": _object(given["args"])}
        fields = _of_node(given) | {"comment": wire.json_text(told)}
        return _said(await reading.ask("Approve", fields), "Approved.")
    return _said(await reading.ask("ApproveTask", _of_node(given) | {"comment": given.get("comment", "")}), "Approved.")


async def _answer(reading: Reading, given: dict[str, Any]) -> str:
    return _said(await reading.ask("ApproveTask", _of_node(given) | {"comment": given.get("text", "")}), "Answered.")


async def _reject(reading: Reading, given: dict[str, Any]) -> str:
    reason = given.get("reason", "")
    if not reason.strip():
        raise InvalidRequest("Say why: the reason is empty.")
    return _said(await reading.ask("RejectTask", _of_node(given) | {"reason": reason}), "Rejected.")


async def _resolve(reading: Reading, given: dict[str, Any]) -> str:
    ways = [way for way in ("result", "failed", "retry") if given.get(way) not in (None, "", False)]
    if len(ways) != 1:
        raise InvalidRequest("Say one of these: result, failed, retry.")
    told = given[ways[0]]
    text = wire.canonical_json(told) if ways[0] == "result" else "" if ways[0] == "retry" else _text(told, "failed")
    fields = {"execution_id": given["execution_id"], "node_id": given.get("node_id", ""), "reason": text}
    return _said(await reading.ask("Resolve", fields, {wire.RESOLUTION: ways[0]}), "Settled.")


async def _cancel(reading: Reading, given: dict[str, Any]) -> str:
    return _said(await reading.ask("CancelExecution", {"execution_id": given["execution_id"]}), "Cancelled.")


async def _retry(reading: Reading, given: dict[str, Any]) -> str:
    name = given["execution_id"]
    try:
        histories = [await reading.execution(name)]
    except NotFound:
        failed = await reading.ask(
            "ListExecutions", {"status": "FAILED", "limit": ACTED_ON_LIMIT}, {wire.PREFIX: f"{name}/"}
        )
        histories = [await reading.execution(each["execution_id"]) for each in reversed(failed["executions"])]
        if not histories:
            await reading.session(name)  # raises NotFound
            return f"Nothing of session {name} has failed."
    left = [each["execution_id"] for each in histories if not given.get("unknown") and may_have_happened(each)]
    said = [
        _said(
            await reading.ask("Resolve", {"execution_id": each["execution_id"]}, {wire.RESOLUTION: "retry"}),
            "It is tried again.",
        )
        for each in histories
        if each["execution_id"] not in left
    ]
    if left and not said:
        raise InvalidRequest(
            f"{left[0]} happens once, and may have happened. Say what happened: nexum resolve {left[0]} --result "
            f"'what it returned'; or attempt it again: nexum retry {left[0]} --unknown"
        )
    return " ".join(said + [f"{each} happens once, and may have happened: it is left alone." for each in left])


async def _stop(reading: Reading, given: dict[str, Any]) -> str:
    fields = {"approver": given.get("by", ""), "reason": given.get("reason", "")}
    told = json.loads((await reading.ask("StopSession", {"execution_id": given["session_id"]} | fields))["message"])
    cut = f", {counted(len(told['stopped']), 'attempt')} cut short" if told["stopped"] else ""
    left = "".join(f" {each} happens once, and is let finish." for each in told["let_finish"])
    name = given["session_id"]
    return f"Session {name} is stopped{cut}. Let it go on with: nexum go {name}.{left}"


async def _go(reading: Reading, given: dict[str, Any]) -> str:
    was_stopped = (await reading.ask("GoSession", {"execution_id": given["session_id"]}))["ok"]
    return f"Session {given['session_id']} {'goes on' if was_stopped else 'was not stopped'}."


async def _fork(reading: Reading, given: dict[str, Any]) -> str:
    fields = {
        "execution_id": given["session_id"],
        "node_id": _text(given.get("new", ""), "new"),
        "reason": str(given.get("before") or ""),
        "approver": given.get("by", ""),
    }
    told = json.loads((await reading.ask("ForkSession", fields))["message"])
    left = "".join(f" {each} has not ended, and is left out." for each in told["left_out"][:10])
    has = f"{counted(told['executions'], 'execution')} of {given['session_id']}, with {counted(told['turns'], 'turn')}"
    return f"Session {given['new']} has {has}.{left}"


async def _forget(reading: Reading, given: dict[str, Any]) -> str:
    metadata = {wire.EVEN_ONCE: str(bool(given.get("even_once"))).lower()}
    if given.get("after") not in (None, ""):
        metadata[wire.AFTER] = str(given["after"])
    fields = {"execution_id": given["session_id"], "node_id": given.get("turn", ""), "approver": given.get("by", "")}
    told = json.loads((await reading.ask("ForgetSession", fields, metadata))["message"])
    taken, kept = counted(told["executions"], "execution"), counted(told["turns"], "turn")
    verb, stay = "was" if told["executions"] == 1 else "were", "stays" if told["turns"] == 1 else "stay"
    return (
        f"{taken} of {given['session_id']} {verb} taken back; {kept} {stay}. See what was taken back with: "
        f"nexum show {told['session_id']}"
    )


async def _prune(reading: Reading, given: dict[str, Any]) -> str:
    try:
        older_than_ms = age_ms(str(given.get("older_than", "")))
    except ValueError as error:
        raise InvalidRequest(f"older_than is {error}") from None
    dry_run = bool(given.get("dry_run"))
    metadata = {wire.OLDER_THAN_MS: str(older_than_ms), wire.DRY_RUN: str(dry_run).lower()}
    session = str(given.get("session") or "").removesuffix("/")
    answer = await reading.ask("Prune", {"execution_id": f"{session}/" if session else ""}, metadata)
    return pruned(json.loads(answer["message"]), dry_run=dry_run)


EXECUTION, SESSION = "execution_id", "session_id"
NODE = Field("node_id", "Node", is_needed=True)
ACTIONS = {
    each.name: each
    for each in (
        Action(
            "approve",
            "Approve",
            "It goes on at once, and your words are recorded with the yes.",
            EXECUTION,
            (
                NODE,
                Field("comment", "Words", "shown to the one who asked", kind="long", option="--comment"),
                Field("args", "Other arguments", "a JSON object, to use instead", kind="json", option="--args"),
                BY,
            ),
            _approve,
        ),
        Action(
            "answer",
            "Answer",
            "Whoever asked gets this answer, and goes on.",
            EXECUTION,
            (
                Field("text", "Answer", is_needed=True, kind="long"),
                Field("node_id", "Node", is_needed=True, option="--node"),
                BY,
            ),
            _answer,
        ),
        Action(
            "reject",
            "Reject",
            "It is not done, and whoever asked is told why.",
            EXECUTION,
            (NODE, Field("reason", "Why", "shown to the one who asked", True, "long", "--reason"), BY),
            _reject,
            is_grave=True,
        ),
        Action(
            "resolve",
            "Settle",
            "What you say is recorded as its outcome, once and for all.",
            EXECUTION,
            (
                Field("result", "It happened, and this is its result", kind="long", option="--result"),
                Field("failed", "It failed, for this reason", kind="long", option="--failed"),
                Field("retry", "Attempt it again, whatever happened", kind="flag", option="--retry"),
                Field("node_id", "Node", option="--node"),
            ),
            _resolve,
        ),
        Action(
            "cancel",
            "Cancel",
            "It ends as CANCELLED, and a tool that runs is told to stop. What happens once and has begun is not cut "
            "short: its outcome is unknown until it ends.",
            EXECUTION,
            (),
            _cancel,
            is_grave=True,
        ),
        Action(
            "retry",
            "Try again",
            "What failed is attempted again. What is recorded stays. What happens once, and may have happened, is left "
            "alone, unless you say otherwise.",
            EXECUTION,
            (Field("unknown", "Also what may have happened already", kind="flag", option="--unknown"),),
            _retry,
        ),
        Action(
            "stop",
            "Stop",
            "None of its turns and calls begins any more, and what runs is cut short. What happens once is let finish. "
            "What is recorded stays.",
            SESSION,
            (Field("reason", "Why", "shown to whoever runs the session", option="--reason"), BY),
            _stop,
            is_grave=True,
        ),
        Action(
            "go",
            "Let it go on",
            "Calls on a worker begin at once. For the rest, run its program again.",
            SESSION,
            (),
            _go,
        ),
        Action(
            "fork",
            "Fork",
            "A new session begins with what this one has recorded. This one does not change.",
            SESSION,
            (
                Field("new", "The new session", "a new id", True),
                Field("before", "Only what began before turn", "its number, from 1, or its id", option="--before"),
                BY,
            ),
            _fork,
        ),
        Action(
            "forget",
            "Forget",
            "What it recorded after that turn is taken back, and the next run asks again from there. It can still be "
            "read, under another id.",
            SESSION,
            (
                Field("after", "Keep the first turns", "how many: 0 or more", option="--after"),
                Field("turn", "Or take back from this turn on", "its id", option="--turn"),
                Field("even_once", "Also what happens once: it may happen again", kind="flag", option="--even-once"),
                BY,
            ),
            _forget,
            is_grave=True,
        ),
        Action(
            "prune",
            "Prune",
            "What ended longer ago than that is deleted for good, and its disk space given back. What runs stays, and "
            "so do unknown outcomes.",
            "",
            (
                Field("older_than", "Older than", "30d, 12h, 90m, 0s", True, option="--older-than"),
                Field("session", "Only of this session", option="--session"),
                Field("dry_run", "Only count them", kind="flag", option="--dry-run"),
            ),
            _prune,
            is_grave=True,
        ),
    )
}


def checked(action: Action, given: Any) -> dict[str, Any]:
    """What was given to an action. Raises InvalidRequest for what it does not take, or lacks."""
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be a JSON object.")
    known = {field.name: field for field in action.fields}
    if wrong := sorted(given.keys() - known.keys() - {action.target}):
        raise InvalidRequest(f"{action.name} takes no {str(wrong[0])[:80]!r}.")
    for name in (action.target, *(field.name for field in action.fields if field.is_needed)):
        if name and given.get(name) in (None, ""):
            raise InvalidRequest(f"{action.name} needs {name!r}.")
    for name, value in given.items():
        kind = known[name].kind if name in known else "text"
        fits = isinstance(value, bool) if kind == "flag" else kind == "json" or isinstance(value, str)
        if not (fits or value is None or name == "result" or (name in ("after", "before") and type(value) is int)):
            raise InvalidRequest(f"{name!r} must be {'true or false' if kind == 'flag' else 'a text'}.")
    return {name: value for name, value in given.items() if value is not None}


def _of_node(given: dict[str, Any]) -> dict[str, str]:
    return {
        "execution_id": given["execution_id"],
        "node_id": given.get("node_id", ""),
        "approver": given.get("by", ""),
    }


def _said(answer: dict[str, Any], otherwise: str) -> str:
    return str(answer.get("message") or otherwise)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name!r} must be a text.")
    return value


def _object(args: Any) -> dict[str, Any]:
    if isinstance(args, str):
        try:
            args = wire.parse_json(args)
        except ValueError:
            args = None
    if not isinstance(args, dict):
        raise InvalidRequest("args must be a JSON object.")
    return args
