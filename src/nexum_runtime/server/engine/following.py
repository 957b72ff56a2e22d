"""Who follows a session: all that is recorded there, in order, and between that the words that are being said.

what is recorded   from the store, so none is missed: a cursor says how far a follower has come
words              of an answer that is not recorded yet, in memory alone, until it is. They are kept once,
                   whoever reads them: a slow follower costs nothing, and nobody waits for one
"""

import asyncio
import re
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.model.contract import EventRow, Execution, Reader, Store, session_of
from nexum_runtime.server.model.states import ExecutionStatus
from nexum_runtime.server.rules.checks import check_execution_id

PAGE = 200  # executions that are read at once
UNDER_WAY_LIMIT = 2_000  # executions of a session that have not completed; with more it cannot be followed
OUTPUT_CHARS = 64 * 1024  # of an output that is told with its event; a larger one is asked for
WORDS_CHARS_LIMIT = 256 * 1024  # kept of one answer
ALL_WORDS_CHARS_LIMIT = 32 * 1024 * 1024  # … and of all
WORDS_SECONDS = 0.001  # for each of all followers, between two times that one is told words: calls come first
SHARED_SECONDS = 1.0  # between two looks at what other servers may have recorded
CAUGHT_UP = "CaughtUp"  # of what is told once: from here on it is as it happens
OVER = ("TaskCompleted", "AttemptFailed", "AttemptStopped", "LeaseExpired", "ExecutionFailed", "ExecutionCancelled")
CURSOR = re.compile(r"([0-9]{1,15}):((?:[0-9]{1,15}\.[0-9]{1,9}(?:,(?!$)|$))*)")


@dataclass
class Words:
    """What has been said so far of one answer: `text` begins at the character `at`."""

    attempt: int
    number: int  # of all tries, so that an answer that begins anew is known for that
    at: int
    text: str = ""

    @property
    def end(self) -> int:
        return self.at + len(self.text)


@dataclass
class Position:
    """How far a follower has come: the order of the execution that was read last, of the last one that it was told
    of, and of each that has not completed, how many of its events were told."""

    last: int = 0
    seen: int = 0
    open: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cursor: str) -> "Position":
        match = CURSOR.fullmatch(cursor or "0:")
        if match is None:
            raise InvalidRequest(f"{cursor[:80]!r} is no cursor: give one that came with an event, or none.")
        pairs = [each.split(".") for each in match[2].split(",") if each]
        return cls(int(match[1]), int(match[1]), {int(order): int(count) for order, count in pairs})

    def __str__(self) -> str:
        under_way = ",".join(f"{order}.{count}" for order, count in self.open.items() if order <= self.seen)
        return f"{self.seen}:{under_way}"


@dataclass
class _Found:
    """What was read of one execution."""

    order: int
    execution: Execution
    events: list[EventRow]
    outputs: dict[str, str]


class Follower:
    """Belongs to one call of `follow`."""

    def __init__(self, prefix: str, position: Position) -> None:
        self.prefix, self.position = prefix, position
        self.names: dict[int, str] = {}  # of what is open: execution ids
        self.changed: set[str] | None = None  # ids of which something was committed; None: look at all
        self.news = asyncio.Event()
        self.said: dict[str, tuple[int, int]] = {}  # execution id → of which try, and up to which character it was told
        self.pause: asyncio.TimerHandle | None = None  # until it is told words again

    def rest(self, seconds: float) -> None:
        self.pause = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self.pause = None
        self.news.set()

    def hear(self, execution_id: str) -> None:
        if self.changed is not None:
            self.changed.add(execution_id)
        self.news.set()


class Followers:
    """Belongs to one event loop."""

    def __init__(self, store: Store, closing: asyncio.Event) -> None:
        self._store, self._closing = store, closing
        self._following: defaultdict[str, set[Follower]] = defaultdict(set)  # by session
        self._words: OrderedDict[str, Words] = OrderedDict()  # by execution, those last added to last
        self._chars = 0  # of all words
        self._tries = count(1)
        self._count = 0  # of followers
        self._before: Callable[[Sequence[tuple[Any, ...]]], None] | None = None
        self._hears = False

    # Words

    def publish(self, execution_id: str, attempt: int, at: int, text: str) -> None:
        """Whoever makes this attempt has said `text`, from the character `at` of its answer on; 0 is its beginning."""
        check_execution_id(execution_id)
        self._listen()
        words = self._words.pop(execution_id, None)
        if words is None or attempt > words.attempt or at == 0:
            self._chars -= len(words.text) if words else 0
            words = Words(attempt, next(self._tries), at)
        elif attempt < words.attempt:  # it comes late
            self._words[execution_id] = words
            return
        elif at != words.end:  # what is between was lost on its way
            self._chars -= len(words.text)
            words.at, words.text = at, ""
        self._chars += len(text)
        words.text += text
        if (over := len(words.text) - WORDS_CHARS_LIMIT) > 0:
            words.at, words.text = words.at + over, words.text[over:]
            self._chars -= over
        self._words[execution_id] = words
        while self._chars > ALL_WORDS_CHARS_LIMIT:
            _, oldest = self._words.popitem(last=False)
            self._chars -= len(oldest.text)
        for follower in self._following.get(session_of(execution_id), ()):
            follower.news.set()

    def _listen(self) -> None:
        """From now on hear what is committed: before anybody follows or says something, that would cost each commit."""
        if not self._hears:
            self._hears, self._before, self._store.watch = True, self._store.watch, self._hear

    def _hear(self, events: Sequence[tuple[Any, ...]]) -> None:
        for execution_id, _, type, *_ in events:
            if type in OVER and (words := self._words.pop(execution_id, None)) is not None:
                self._chars -= len(words.text)
            for follower in self._following.get(session_of(execution_id), ()):
                follower.hear(execution_id)
        if self._before is not None:
            self._before(events)

    # Following

    async def follow(self, session_id: str, cursor: str) -> AsyncGenerator[str, None]:
        """JSON lists of what is recorded from that cursor on ("" is from the beginning), and of words, until the server
        stops: what has happened first, then each thing as it happens."""
        check_execution_id(f"{session_id}/")
        if not session_id or "/" in session_id:
            raise InvalidRequest(f"{session_id[:80]!r} is no session: give what stands before the first / of its ids.")
        with self._registered(Follower(f"{session_id}/", Position.of(cursor))) as follower:
            is_first = True
            while not self._closing.is_set():
                follower.news.clear()
                changed, follower.changed = follower.changed, set()
                found, more = list[_Found](), False
                if changed is None or changed:  # else it is words alone that have come
                    read = partial(_read, follower.prefix, follower.position, follower.names, changed, is_first)
                    found, more = await self._store.read(read, is_look=True)
                told = _told(follower, found, more)
                if not more:
                    told += self._said(follower)
                    if is_first:
                        told.append(_caught_up(str(follower.position), found))
                if told:
                    yield f"[{','.join(told)}]"
                is_first = is_first and more
                if more or not await self._news(follower):
                    follower.changed = None

    @contextmanager
    def _registered(self, follower: Follower) -> Iterator[Follower]:
        self._listen()
        session_id = follower.prefix[:-1]
        self._following[session_id].add(follower)
        self._count += 1
        try:
            yield follower
        finally:
            self._count -= 1
            if follower.pause is not None:
                follower.pause.cancel()
            self._following[session_id].discard(follower)
            if not self._following[session_id]:
                del self._following[session_id]

    async def _news(self, follower: Follower) -> bool:
        """Whether there is any, or the server stops; False when it is time to look at what others have done."""
        waiting = [asyncio.create_task(each.wait()) for each in (follower.news, self._closing)]
        seconds = SHARED_SECONDS if self._store.is_shared else None
        try:
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return bool(done)

    def _said(self, follower: Follower) -> list[str]:
        """What has been said, since this follower was told last, of the answers under way."""
        told, cursor = list[str](), ""
        if follower.pause is not None:
            return told
        for execution_id in follower.names.values():
            if (words := self._words.get(execution_id)) is None:
                continue
            number, end = follower.said.get(execution_id, (0, 0))
            if number != words.number:
                end = 0
            if words.end <= end:
                continue
            skipped = max(words.at - end, 0)
            cursor = cursor or str(follower.position)
            told.append(
                wire.json_text(
                    {
                        "cursor": cursor,
                        "execution_id": execution_id,
                        "words": words.text[max(end - words.at, 0) :],
                        "anew": end == 0,
                        "skipped": skipped,
                    }
                )
            )
            follower.said[execution_id] = words.number, words.end
        if told:
            follower.rest(self._count * WORDS_SECONDS)
        return told


def _read(
    prefix: str, position: Position, names: dict[int, str], changed: set[str] | None, is_first: bool, reader: Reader
) -> tuple[list[_Found], bool]:
    """What was started after a position, or has changed since, and whether there is more."""
    rows = reader.after(prefix, position.last, PAGE + 1, is_near=not is_first)
    ids = dict(rows[:PAGE])
    if changed is None and position.open.keys() - names.keys():
        names |= reader.named(position.open.keys() - names.keys())
    ids |= {order: names[order] for order in position.open if order in names and _is_in(names[order], changed)}
    found = []
    for order, execution_id in ids.items():
        if (execution := reader.execution(execution_id)) is None:  # it was pruned, or taken back
            position.open.pop(order, None)
            names.pop(order, None)
            continue
        names[order] = execution_id
        events, told = reader.events(execution_id), position.open.get(order, 0)
        nodes = {each.node_id for each in events[told:] if each.type == "TaskCompleted" and each.node_id}
        outputs = reader.outputs(execution_id, nodes) if nodes else {}
        found.append(_Found(order, execution, events, outputs))
    return found, len(rows) > PAGE


def _is_in(execution_id: str, changed: set[str] | None) -> bool:
    return changed is None or execution_id in changed


def _told(follower: Follower, found: list[_Found], more: bool) -> list[str]:
    """The events that are new, as JSON in the order they happened, and the follower's position behind them.

    While there is `more`, what happened after the last execution of these was started has to wait.
    """
    position = follower.position
    new = [each for each in found if each.order > position.last]
    until_ms = max((each.execution.created_at_ms for each in new), default=0) if more else None
    events = [
        (event.at_ms, each.order, at, event, each)
        for each in found
        for at, event in enumerate(each.events)
        if at >= position.open.get(each.order, 0) and (until_ms is None or event.at_ms <= until_ms)
    ]
    for each in new:
        position.open[each.order] = 0
        position.last = max(position.last, each.order)
    if len(position.open) > UNDER_WAY_LIMIT + PAGE:
        raise LimitExceeded(
            f"Session {follower.prefix[:-1]} has more than {UNDER_WAY_LIMIT} executions that have not completed: it "
            f"cannot be followed. See it with: nexum show {follower.prefix[:-1]}"
        )
    told = []
    for _, order, at, event, each in sorted(events, key=lambda each: each[:3]):
        position.seen = max(position.seen, order)
        is_over = each.execution.status == ExecutionStatus.COMPLETED and at == len(each.events) - 1
        if is_over:
            position.open.pop(order)
            follower.said.pop(follower.names.pop(order, ""), None)
        else:
            position.open[order] = at + 1
        told.append(_event_json(event, each, str(position)))
    return told


def _caught_up(cursor: str, found: list[_Found]) -> str:
    """What has begun before, and is under way, may be new to who goes on from a cursor."""
    running = [each.execution for each in found if each.execution.status == ExecutionStatus.RUNNING]
    under_way = [each.execution_id for each in running]
    return wire.json_text({"cursor": cursor, "type": CAUGHT_UP, "under_way": under_way})


def _event_json(event: EventRow, of: _Found, cursor: str) -> str:
    told = {
        "cursor": cursor,
        "execution_id": of.execution.execution_id,
        "type": event.type,
        "at_ms": event.at_ms,
        "node_id": event.node_id,
        "attempt": event.attempt,
        "labels": wire.parse_json(of.execution.labels_json) if of.execution.labels_json else {},
        **event.data,
    }
    output = of.outputs.get(event.node_id or "") if event.type == "TaskCompleted" else None
    if output is None or len(output) > OUTPUT_CHARS:
        return wire.json_text(told)
    return f'{wire.json_text(told)[:-1]},"output":{output}}}'  # which is JSON already
