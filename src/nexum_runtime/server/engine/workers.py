"""Who works for a server: the workers that have been heard of lately, and what they ask for."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nexum_runtime import wire

SEEN_MS = 65_000  # a worker counts as here for so long after its last word: longer than any poll is held
WORKERS_LIMIT = 10_000  # remembered, the latest ones
RENEW_MS = 5_000  # at most so often a poll renews the leases of its worker
POLLS_RENEW_MS = 900_000  # of one attempt: whoever only polls may have lost it, and would keep it from all others
TOLD_MS = 600_000  # between two words that a worker leaves tasks to others
STANDSTILL_KEPT_MS = 300_000  # how long it is told that a worker stood still
STANDSTILL_CHARS = 500  # of where it was
ASKS_LIMIT = 100  # workflows that one worker is remembered to have asked for


@dataclass
class _Standstill:
    where: str
    ms: int  # for how long
    ended_ms: int | None = None  # when it was over


@dataclass
class _Worker:
    heard_ms: int
    standstill: _Standstill | None = None  # the last one
    asking: int = 0  # polls that are held
    renewed_ms: int = 0
    told_ms: int = 0  # until when it is not looked what it leaves to others
    held_since_ms: dict[str, int] = field(default_factory=dict)  # by task id, of one that only polls
    asks: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)  # (workflow id, version hash)


class Workers:
    """Who has been heard of lately. `clock` tells epoch milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._workers: OrderedDict[str, _Worker] = OrderedDict()  # the one heard of last is the last

    def heard(self, worker_id: str) -> _Worker:
        worker = self._workers.setdefault(worker_id, _Worker(0))
        worker.heard_ms = self._clock()
        self._workers.move_to_end(worker_id)
        if len(self._workers) > WORKERS_LIMIT:
            self._workers.popitem(last=False)
        return worker

    def note_standstill(self, worker_id: str, standstill: tuple[int, str] | None) -> None:
        """What this worker says of itself: its event loop stands still, or goes on."""
        worker = self._workers[worker_id]
        if standstill is not None:
            ms, where = standstill
            worker.standstill = _Standstill(where[:STANDSTILL_CHARS], ms)
        elif worker.standstill is not None and worker.standstill.ended_ms is None:
            worker.standstill.ended_ms = self._clock()

    @contextmanager
    def asking(self, worker_id: str, version_hash: str, workflow_ids: Sequence[str]) -> Iterator[None]:
        """While this worker waits for a task of these workflows."""
        worker = self.heard(worker_id)
        for workflow_id in workflow_ids or [""]:
            worker.asks[workflow_id, version_hash] = None
            worker.asks.move_to_end((workflow_id, version_hash))
        while len(worker.asks) > ASKS_LIMIT:
            worker.asks.popitem(last=False)
        worker.asking += 1
        try:
            yield
        finally:
            worker.asking -= 1

    def is_to_renew(self, worker_id: str) -> bool:
        """Whether a poll of this worker, which sends no heartbeats, is to renew its leases now."""
        worker, now_ms = self.heard(worker_id), self._clock()
        if 0 <= now_ms - worker.renewed_ms < RENEW_MS:
            return False
        worker.renewed_ms = now_ms
        return True

    def is_to_be_told(self, worker_id: str) -> bool:
        """Whether it is to be looked now for tasks that this worker cannot run."""
        worker, now_ms = self.heard(worker_id), self._clock()
        if 0 <= now_ms - worker.told_ms < RENEW_MS or worker.told_ms > now_ms:
            return False
        worker.told_ms = now_ms
        return True

    def note_told(self, worker_id: str) -> None:
        """It was said of this worker that it leaves tasks to others: once is enough for a while."""
        self.heard(worker_id).told_ms = self._clock() + TOLD_MS

    def renewable(self, worker_id: str, task_ids: Sequence[str]) -> list[str]:
        """Those of the attempts that this worker, just heard of, holds whose leases its polls still renew."""
        worker, now_ms = self._workers.get(worker_id, _Worker(0)), self._clock()
        worker.held_since_ms = {task_id: worker.held_since_ms.get(task_id, now_ms) for task_id in task_ids}
        return [each for each, since_ms in worker.held_since_ms.items() if now_ms - since_ms < POLLS_RENEW_MS]

    def seen(self, held: dict[str, int]) -> list[dict[str, Any]]:
        """Those of the last minute, the one heard of last first. `held` is how many tasks each has."""
        now_ms = self._clock()
        return [
            {
                "worker_id": worker_id,
                "asks_for": [
                    {"workflow_id": workflow_id, "version_hash": version_hash}
                    for workflow_id, version_hash in worker.asks
                ],
                "waits_for_task": worker.asking > 0,
                "heard_ms": 0 if worker.asking else max(now_ms - worker.heard_ms, 0),
                "tasks": held.get(worker_id, 0),
                "standstill": _told(worker.standstill, now_ms),
            }
            for worker_id, worker in reversed(self._workers.items())
            if not worker_id.startswith(wire.LOCAL_WORKER) and (worker.asking or now_ms - worker.heard_ms < SEEN_MS)
        ]


def _told(standstill: _Standstill | None, now_ms: int) -> dict[str, Any] | None:
    """`ago_ms` is how long it is over, None while it is not."""
    if standstill is None:
        return None
    ago_ms = None if standstill.ended_ms is None else now_ms - standstill.ended_ms
    if ago_ms is not None and ago_ms > STANDSTILL_KEPT_MS:
        return None
    return {"where": standstill.where, "ms": standstill.ms, "ago_ms": ago_ms}
