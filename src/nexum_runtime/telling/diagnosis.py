"""What is wrong, told from what a server says of itself. Pure: `nexum doctor` and the page ask."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nexum_runtime.telling.words import HASH_CHARS, counted
from nexum_runtime.text import MIB, duration_text, size_text

PATIENCE_MS = 2_000  # a task that waits for longer has nobody who takes it
GONE_MS = 2_000  # a worker without a task that is silent for longer has gone: even nexum-py's own asks every 100 ms
SILENCE_SHARE = 0.5  # of a lease: workers are heard of every third of one
SWEEP_MS = 2_000  # after the end of a lease: by then the server has given it up
FREE_BYTES_MIN = 64 * MIB
CONNECTIONS_SHARE = 0.95
LAG_MS = 5_000  # of notifications; they take milliseconds
CLOCK_MS = 2_000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or, with `is_wrong` False, worth knowing."""

    # no-server, database, connections, notifications, clock, disk,
    # no-worker, other-version, busy, local, silent, lease, approval, stopped, unknown
    cause: str
    text: str  # a sentence, with what to do next
    is_wrong: bool = True


def findings(told: dict[str, Any], approvals: list[Any]) -> Iterator[Finding]:
    """`told` is what `Client.inspect` returns, `approvals` are nexum-py's messages."""
    yield from _of_database(told["database"])
    for waiting in told.get("waiting", ()):
        if waiting["since_ms"] >= PATIENCE_MS:
            yield _of_waiting(waiting, told["workers"])
    for running in told.get("running", ()):
        if running["silent_ms"] > running["lease_ms"] * SILENCE_SHARE:
            yield _of_silence(running)
    for worker in told.get("workers", ()):
        if worker["standstill"] is not None:
            yield _of_standstill(worker["worker_id"], **worker["standstill"])
    lost: dict[str, list[dict[str, Any]]] = {}
    for expired in told.get("expired", ()):
        lost.setdefault(expired["error"], []).append(expired)
    for reason, attempts in lost.items():
        yield _of_lost(reason, attempts)
    for each in approvals:
        yield Finding(
            "approval",
            f"{each.execution_id} waits for a person, at {each.node_id}; see what for, and answer: "
            f"nexum approvals {each.execution_id}",
            is_wrong=False,
        )
    for stop in told.get("stopped", ()):
        by, reason = f" by {stop['by']}" if stop["by"] else "", f": {stop['reason']}" if stop["reason"] else ""
        yield Finding(
            "stopped",
            f"Session {stop['session_id']} was stopped{by}{reason}; to let it go on: nexum go {stop['session_id']}",
            is_wrong=False,
        )
    for execution_id in told.get("unknown", ()):
        yield Finding(
            "unknown",
            f"The outcome of {execution_id} is unknown. Find out what happened, and say it: "
            f"nexum resolve {execution_id} --result 'what it returned'",
        )


def _of_database(database: dict[str, Any]) -> Iterator[Finding]:
    path, free_bytes = database["path"], database["free_bytes"]
    if database["damage"]:
        yield Finding(
            "database",
            f"The database {path} is damaged: {database['damage']}. Stop the server, and put a backup in its place, "
            f"or save what can be read: sqlite3 {path} .recover | sqlite3 saved.db",
        )
    if problem := database.get("log_problem"):  # servers of before do not tell it
        yield Finding("database", problem)
    if database["problem"]:
        yield Finding("database", f"Nothing can be recorded: {database['problem']}")
    elif database["failure"]:
        when = _ago(database["failure_ms"])
        yield Finding("database", f"Something could not be recorded {when}: {database['failure']}")
    if not database["problem"]:
        yield from _of_postgres(database)
    if free_bytes is not None and free_bytes < FREE_BYTES_MIN:
        yield Finding(
            "disk",
            f"The disk of {path} has {size_text(free_bytes)} free; make room on it, or give back what ended long ago: "
            "nexum prune --older-than 30d",
        )


def _of_postgres(database: dict[str, Any]) -> Iterator[Finding]:
    used, limit = database.get("connections", 0), database.get("connections_limit", 0)
    if used > limit * CONNECTIONS_SHARE:
        yield Finding(
            "connections",
            f"PostgreSQL has {used} of {limit} connections in use, and refuses more. Raise its max_connections, or end "
            "other programs' connections; each Nexum server takes six.",
        )
    if (lag_ms := database.get("notification_lag_ms", 0)) > LAG_MS:
        yield Finding(
            "notifications",
            f"No notification of PostgreSQL has come for {duration_text(lag_ms)}, so what happens at one server is "
            "noticed at another up to a second later. A pooler in transaction mode hands none on: name PostgreSQL "
            "itself in the URL.",
        )
    if abs(ahead_ms := database.get("clock_ahead_ms", 0)) > CLOCK_MS:
        way = "behind" if ahead_ms > 0 else "ahead of"
        yield Finding(
            "clock",
            f"The clock of the server's machine is {duration_text(abs(ahead_ms))} {way} PostgreSQL's. Nexum goes by "
            "PostgreSQL's, and other logs of this machine do not: let both be set by the network (NTP).",
            is_wrong=False,
        )


def _of_waiting(waiting: dict[str, Any], workers: list[dict[str, Any]]) -> Finding:
    """Why nobody takes a task that has been READY for a while."""
    workflow, version = waiting["workflow_id"], waiting["version_hash"]
    waits = "has" if waiting["tasks"] == 1 else "have"
    what = (
        f"{counted(waiting['tasks'], 'task')} of {workflow} {short(version)} {waits} waited for "
        f"{duration_text(waiting['since_ms'])}, the first of {waiting['execution_id']}"
    )
    if waiting["local"]:
        return Finding("local", f"{what}: run the program again that began it, and it goes on.", is_wrong=False)
    asked = [
        (ask["workflow_id"], ask["version_hash"], worker)
        for worker in workers
        for ask in worker["asks_for"]
        if worker["waits_for_task"] or worker["tasks"] or worker["heard_ms"] < GONE_MS  # the others have gone
    ]
    own = [worker for name, version_hash, worker in asked if (name, version_hash) == (workflow, version)]
    others = sorted({version_hash for name, version_hash, _ in asked if name == workflow} - {version})
    if own:
        busy = f"{counted(len(own), 'worker')} with {counted(sum(each['tasks'] for each in own), 'task')} under way"
        next_step = "To have more done at once, start another one, or give it a larger --concurrency."
        return Finding("busy", f"{what}: there is {busy}. {next_step}", is_wrong=False)
    if others:
        other = short(others[0])
        return Finding(
            "other-version",
            f"{what}: the workers that are here ask for another version of it, {other}. Start one with the code of "
            f"this version; what has changed: nexum diff {workflow} {short(version)} {other}",
        )
    here = ", ".join(sorted({name or short(version_hash) for name, version_hash, _ in asked}))
    who = f"the workers that are here ask only for {here}" if here else "no worker is here"
    return Finding("no-worker", f"{what}: {who}. Start one for it: python worker.py")


def _of_lost(reason: str, attempts: list[dict[str, Any]]) -> Finding:
    last = attempts[0]
    given_up = f"Given up: {counted(len(attempts), 'attempt')}, the last {_ago(last['ago_ms'])}"
    return Finding("lease", f"{reason} {given_up}; what becomes of it: nexum show {last['execution_id']}")


def _of_silence(running: dict[str, Any]) -> Finding:
    left_ms = running["lease_ms"] - running["silent_ms"]
    text = (
        f"Worker {running['worker_id']} has not been heard of for {duration_text(running['silent_ms'])}, and has "
        f"{running['execution_id']}"
    )
    if left_ms > -SWEEP_MS:
        left = duration_text(max(left_ms, 0))
        return Finding("silent", f"{text}: it is given up in {left}. Start another one: python worker.py")
    return Finding(
        "lease", f"{text}: its lease is over, and the server has not given it up; look at what the server logs."
    )


def _of_standstill(worker_id: str, where: str, ms: int, ago_ms: int | None) -> Finding:
    how_long = duration_text(ms)
    when = f"has stood still for {how_long}" if ago_ms is None else f"stood still for {how_long}, {_ago(ago_ms)}"
    return Finding(
        "standstill",
        f"Worker {worker_id} {when}: {where} blocks its event loop, and none of its other calls goes on meanwhile. "
        "Await what it waits for, or make it a sync function, which runs in a thread.",
    )


def short(version_hash: str) -> str:
    return version_hash[:HASH_CHARS]


def _ago(ms: int) -> str:
    return f"{duration_text(ms)} ago"
