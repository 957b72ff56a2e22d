"""What a session may use at most, over all its runs: counted is what is recorded, and what is being made now."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager

SETTLE_SECONDS = 600.0  # for what has begun in a run to be recorded, before a limit ends it


class Making:
    """Something that this process makes and records now: `kind` is "turns", "calls", or "" for all else."""

    def __init__(self, kind: str, run: str, execution_id: str, *, here: bool) -> None:
        self.kind, self.run, self.execution_id, self.here = kind, run, execution_id, here


class Limits:
    """`{"turns": …, "calls": …, "tokens": …}` at most."""

    def __init__(self, most: Mapping[str, int | None]) -> None:
        for name, limit in most.items():
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"max_{name} is {limit!r}; it must be a whole number from 1 on.")
        self._most = {name: limit for name, limit in most.items() if limit is not None}
        self._used: Counter[str] = Counter()  # recorded
        self._made_now: list[Making] = []
        self._refused: list[Set[str]] = []  # by what waits to end its run: the calls that it is inside of
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def are_set(self) -> bool:
        return bool(self._most)

    def begin(self, turns: int, calls: int, tokens: int) -> None:
        self._used = Counter(turns=turns, calls=calls, tokens=tokens)

    @contextmanager
    def making(self, kind: str, run: str, execution_id: str, *, here: bool = True) -> Iterator[Making]:
        """A block in which something is made: in this process, or (`here=False`) by a worker.

        Counted from the start, or calls side by side would all find that there is room for one more.
        """
        making = Making(kind, run, execution_id, here=here)
        self._made_now.append(making)
        try:
            yield making
        finally:
            self._end(making)

    def use(self, making: Making, tokens: int = 0) -> None:
        """It is recorded."""
        self._end(making)
        self._used[making.kind] += 1
        self._used["tokens"] += tokens

    def _end(self, making: Making) -> None:
        if making in self._made_now:
            self._made_now.remove(making)
            self._wake()

    def _wake(self) -> None:
        for waiting in list(self._waiting):  # perhaps in the loop of another thread, as that of a sync tool's own run
            waiting.get_loop().call_soon_threadsafe(_let_go, waiting)

    def reached(self, *kinds: str) -> tuple[str, int, int] | None:
        """Which of these is used up, how much of it is used, and how much may be; None when there is more of each."""
        for kind in kinds:
            used = self._used[kind] + sum(each.kind == kind for each in self._made_now)
            if used >= self._most.get(kind, used + 1):
                return kind, used, self._most[kind]
        return None

    async def settled(self, run: str, inside: Set[str]) -> bool:
        """Wait until what this process makes in a run has ended. Returns whether there was anything.

        For when the run ends the SDK cancels what goes on beside, and it would be made again. What the caller is
        `inside` of is not waited for, and neither is what contains another one that waits here.
        """
        self._refused.append(inside)
        self._wake()  # whoever waits for what contains the caller
        try:
            if not self._unsettled(run):
                return False
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._unsettled(run):
                    await self._next_end()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._refused.remove(inside)

    def _unsettled(self, run: str) -> bool:
        return any(
            each.here and each.run == run and not any(each.execution_id in inside for inside in self._refused)
            for each in self._made_now
        )

    async def _next_end(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            self._waiting.remove(waiting)


def _let_go(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
