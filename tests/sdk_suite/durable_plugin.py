"""A pytest plugin: runs every test plain and inside a durable session, replays its calls, and writes down what it saw.

    pytest -p durable_plugin        (with NEXUM_ADDRESS, and SDK_SUITE_REPORT: the folder to write to)

Each line that it writes is the JSON of a `Seen`. A test is run again where that tells apart who is to blame: without
being watched if it fails (some tests look at their own stack), and plain once more if it still fails durable (some
tests pass only the first time).
"""

import contextlib
import functools
import hashlib
import inspect
import json
import os
import signal
import time
from asyncio import new_event_loop
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from replaying import Replayed, remember, replay
from watching import Call, Watch, watching

from nexum_agents import durable_session

PATIENCE_SECONDS = 60.0  # for one run of one test; hardly one takes a second
AND_AGAIN_SECONDS = 5.0  # should it catch what ends it
MESSAGE_CHARS = 400
TOOK_TOO_LONG = f"The test had not ended after {PATIENCE_SECONDS:g} s."


@dataclass
class Seen:
    """One test of the SDK."""

    test: str
    plain: str = ""  # passed, failed or skipped
    durable: str = ""  # passed, failed, skipped, or unrepeatable: it fails plain as well when it is run again
    message: str = ""  # why it failed
    calls: int = 0  # of Runner
    seconds: float = 0.0  # that all its tries took
    unwatched: bool = False  # it passes only when it is not watched
    differ: list[str] = field(default_factory=list)  # where plain and durable differ, call by call
    replayed: Replayed = field(default_factory=Replayed)


@dataclass
class Try:
    """One run of one test: how it is to be done, and what came of it."""

    durable: bool
    watched: bool
    number: int = 0
    outcome: str = ""
    message: str = ""
    watch: Watch | None = None
    replayed: Replayed = field(default_factory=Replayed)

    @property
    def calls(self) -> list[Call]:
        return self.watch.calls if self.watch is not None else []


_tries = pytest.StashKey[Try]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    seen = Seen(item.nodeid)
    began = time.monotonic()
    plain = _try(item, Try(durable=False, watched=True), log=True)
    if plain.outcome == "failed":
        plain = _try(item, Try(durable=False, watched=False))
    seen.plain, seen.message, seen.calls = plain.outcome, plain.message, len(plain.calls)
    if seen.plain == "passed":
        _try_durable(item, plain, seen)
    item.session._setupstate.teardown_exact(nextitem)
    seen.seconds = round(time.monotonic() - began, 3)
    _write(seen)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _try_durable(item: pytest.Item, plain: Try, seen: Seen) -> None:
    durable = _try(item, Try(durable=True, watched=plain.watched, number=1))
    if durable.outcome == "failed" and durable.watched and TOOK_TOO_LONG not in durable.message:
        unwatched = _try(item, Try(durable=True, watched=False, number=2))
        if unwatched.outcome != "failed":
            durable = unwatched
    seen.durable, seen.message, seen.replayed = durable.outcome, durable.message, durable.replayed
    seen.unwatched = not durable.watched
    if durable.outcome == "failed" and _try(item, Try(durable=False, watched=False)).outcome == "failed":
        seen.durable = "unrepeatable"
    if durable.watched and durable.outcome == "passed":
        seen.differ = _differences(plain.calls, durable.calls)


def _differences(plain: list[Call], durable: list[Call]) -> list[str]:
    before, after = ({call.name: call for call in calls} for calls in (plain, durable))
    lines = [f"{name}: called only {'plain' if name in before else 'durable'}" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        lines += [f"{name}: {line}" for line in before[name].differs(after[name])]
    return sorted(lines)


def _try(item: pytest.Item, this: Try, *, log: bool = False) -> Try:
    """Run a test once. What its module and session share stays set up for the next try."""
    item.stash[_tries] = this
    assert item.parent is not None
    # The test's fixtures, which put back what it replaced, end within.
    with watching(remember if this.durable else None) if this.watched else contextlib.nullcontext() as this.watch:
        reports = runtestprotocol(item, log=log, nextitem=item.parent)  # type: ignore[arg-type]
    failed = [report for report in reports if report.failed]
    skipped = any(report.skipped for report in reports)
    this.outcome = "failed" if failed else "skipped" if skipped else "passed"
    if failed:
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        this.message = f"{failed[0].when}: {crash.message if crash else failed[0].longrepr}"[:MESSAGE_CHARS]
    return this


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    this = item.stash[_tries]
    plain_test = getattr(item, "obj", None)
    with _patience():
        if this.durable and plain_test is not None:
            item.obj = _in_a_session(plain_test, this, _session_id(item, this))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if plain_test is not None:
                item.obj = plain_test  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    with _patience():  # an event loop that is closed waits for its tasks, which may wait for ever
        yield


def _in_a_session(test: Any, this: Try, session_id: str) -> Any:
    """The test inside a durable session; if it passes, its calls are replayed."""
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def asynchronous(*args: Any, **named: Any) -> None:
            async with durable_session(session_id):
                await test(*args, **named)
            if this.watch is not None and this.calls:
                this.replayed = await replay(this.watch, session_id)

        return asynchronous

    @functools.wraps(test)
    def synchronous(*args: Any, **named: Any) -> None:
        with durable_session(session_id):
            test(*args, **named)
        if this.watch is not None and this.calls:
            loop = new_event_loop()
            try:
                this.replayed = loop.run_until_complete(replay(this.watch, session_id))
            finally:
                loop.close()

    return synchronous


def _session_id(item: pytest.Item, this: Try) -> str:
    return f"test-{hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]}-{this.number}"


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """End the test, wherever it is, when it takes too long."""

    def enough(*_: Any) -> None:
        pytest.fail(TOOK_TOO_LONG)

    before = signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS, AND_AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _write(seen: Seen) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with (Path(os.environ["SDK_SUITE_REPORT"]) / f"{worker}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(seen)) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is to be run, so that a process that dies is not taken for tests that pass."""
    names = "".join(f"{item.nodeid!r}\n" for item in session.items)
    (Path(os.environ["SDK_SUITE_REPORT"]) / "collected.txt").write_text(names, encoding="utf-8")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported counts as one test that fails."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(crash.message if crash else report.longrepr).strip().splitlines()[-1][:MESSAGE_CHARS]
        _write(Seen(report.nodeid, plain="failed", message=f"collect: {message}"))
