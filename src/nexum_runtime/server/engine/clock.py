"""The time by which leases and events go: that of the day when a server starts, and from then on one that is never set.

The time of day is set by people and by the network, and jumps when a machine has slept. A lease is to be as long as it
says all the same: so the sweeper follows a jump, and moves the leases with it in the same transaction.
"""

import time
from collections.abc import Callable

JUMP_MS = 100  # that the time of day is off, until it is followed


def time_of_day_ms() -> int:
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Clock:
    """Tells epoch milliseconds."""

    def __init__(self, of_day: Callable[[], int] = time_of_day_ms, steady: Callable[[], int] = steady_ms) -> None:
        self._of_day, self._steady = of_day, steady
        self._ahead_ms = of_day() - steady()

    def __call__(self) -> int:
        return self._steady() + self._ahead_ms

    def jump_ms(self) -> int:
        """By how much the time of day is ahead of this clock, if that is worth following, else 0."""
        jump_ms = self._of_day() - self()
        return jump_ms if abs(jump_ms) > JUMP_MS else 0

    def follow(self, jump_ms: int) -> None:
        self._ahead_ms += jump_ms
