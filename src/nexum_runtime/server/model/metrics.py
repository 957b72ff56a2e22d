"""What a server counts, and how that is told: in Prometheus' text format.

Counting is a few additions, and takes no more memory over time; all else is computed when somebody asks.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from nexum_runtime.server.model.states import Event

Samples: TypeAlias = Iterable[tuple[Mapping[str, str], float]]  # labels and value of each

COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # bounds of buckets
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ATTEMPT_STARTED = Event.ATTEMPT_STARTED.value
ENDED = {
    "COMPLETED": Event.EXECUTION_COMPLETED,
    "FAILED": Event.EXECUTION_FAILED,
    "CANCELLED": Event.EXECUTION_CANCELLED,
}
OUTCOMES = {
    "completed": Event.TASK_COMPLETED,
    "failed": Event.ATTEMPT_FAILED,
    "lost": Event.LEASE_EXPIRED,
    "returned": Event.ATTEMPT_RETURNED,
    "parked": Event.ATTEMPT_PARKED,
}


class Metrics:
    """What has been committed since this server was started."""

    def __init__(self) -> None:
        self.failed_commits = 0
        self._events: Counter[str] = Counter()  # by type
        self._retries = 0
        self._writes = 0
        self._commits = [0] * (len(COMMIT_SECONDS) + 1)  # as long as each bound, and longer
        self._commit_seconds = 0.0

    def committed(self, seconds: float, writes: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        """One commit: for each of its writes the events, (execution id, time, type, node, attempt, data)."""
        self._commits[bisect_left(COMMIT_SECONDS, seconds)] += 1
        self._commit_seconds += seconds
        self._writes += len(writes)
        for events in writes:
            for _, _, event, _, attempt, _ in events:
                self._events[event] += 1
                if event == ATTEMPT_STARTED and attempt != 1:
                    self._retries += 1

    def text(
        self,
        server: str,
        tasks: Mapping[tuple[str, str], int],
        waiting: Mapping[str, int],
        slots: Mapping[str, int],
        connections: Mapping[str, int],
        lag_seconds: float,
    ) -> str:
        """All metrics, with what is so now: `tasks` by status and type of node, `waiting` calls by what they wait for,
        workers' `slots` and the database's `connections` by state, and the lag of notifications."""
        events = self._events
        started = events[Event.EXECUTION_STARTED] + events[Event.EXECUTION_RESTARTED]
        families: list[tuple[str, str, str, Samples]] = [
            ("build_info", "gauge", "Which server this is, and its version", [({"server": server} | _build(), 1)]),
            ("executions_started_total", "counter", "Executions started, or started again", [({}, started)]),
            (
                "executions_ended_total",
                "counter",
                "Executions ended: COMPLETED, FAILED or CANCELLED",
                [({"status": status}, events[event]) for status, event in ENDED.items()],
            ),
            ("attempts_started_total", "counter", "Attempts begun", [({}, events[Event.ATTEMPT_STARTED])]),
            (
                "attempts_ended_total",
                "counter",
                "Attempts ended: completed, failed, lost with their lease or worker, or returned by one that had gone",
                [({"outcome": outcome}, events[event]) for outcome, event in OUTCOMES.items()],
            ),
            ("retries_total", "counter", "Attempts begun that were not the first at their task", [({}, self._retries)]),
            (
                "tasks",
                "gauge",
                "Open tasks: READY is the queue, RUNNING is with workers, WAITING is for people, time, items or parked",
                [({"status": status, "node_type": kind}, count) for (status, kind), count in tasks.items()],
            ),
            (
                "waiting_calls",
                "gauge",
                "Calls that wait now for the end of an execution, or for a task",
                [({"for": what}, count) for what, count in waiting.items()],
            ),
            (
                "worker_slots",
                "gauge",
                "Slots of the workers that are connected: free or busy",
                [({"state": state}, count) for state, count in slots.items()],
            ),
            (
                "database_connections",
                "gauge",
                "Connections of this server with PostgreSQL: open, and those of them that are busy",
                [({"state": state}, count) for state, count in connections.items()],
            ),
            (
                "notification_lag_seconds",
                "gauge",
                "How long it takes until a server hears what another one tells by PostgreSQL",
                [({}, lag_seconds)],
            ),
            ("writes_total", "counter", "Writes committed, several of them in one commit", [({}, self._writes)]),
            (
                "commits_failed_total",
                "counter",
                "Commits that failed, with all their writes",
                [({}, self.failed_commits)],
            ),
            ("commit_seconds", "histogram", "How long a commit took, synced to the disk", ()),
        ]
        return "".join(_family(*family) for family in families) + self._commit_times()

    def _commit_times(self) -> str:
        counts = list(accumulate(self._commits))
        buckets = zip([*COMMIT_SECONDS, "+Inf"], counts, strict=True)
        return (
            "".join(_sample("commit_seconds_bucket", {"le": str(bound)}, count) for bound, count in buckets)
            + _sample("commit_seconds_sum", {}, self._commit_seconds)
            + _sample("commit_seconds_count", {}, counts[-1])
        )


def _build() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {"version": version("openai-agents-nexum"), "python": platform.python_version()}


def _family(name: str, kind: str, help: str, samples: Samples) -> str:
    head = f"# HELP nexum_{name} {help}\n# TYPE nexum_{name} {kind}\n"
    return head + "".join(_sample(name, labels, value) for labels, value in samples)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    """None of our labels' values has a character that would have to be escaped."""
    named = ",".join(f'{label}="{each}"' for label, each in labels.items())
    return f"nexum_{name}{f'{{{named}}}' if named else ''} {value}\n"
