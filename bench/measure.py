"""Rounds, and what is made of them: medians with their spread, percentiles over all calls, comparisons in a round.

A round measures every kind, in an order that differs from round to round, and what is short in several slices, so that
what else the machine does falls on all kinds alike. What is compared was measured in the same round; the median of the
rounds is told, with the least and the most. The first round warms up, in the kinds' own order, and is thrown away. So
are the first samples of a slice: they find the processor's caches full of what was measured before, whatever that was.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Samples = list[float]
Round = dict[str, Samples]  # by the kinds' keys


WARM_UP = 5  # samples of a slice


class BenchmarkError(Exception):
    """What was measured is not what it should have been. Says what and where."""


@dataclass(frozen=True)
class Kind:
    """One thing that is measured: `measure` makes the samples of one round, or of one slice of it, in `unit`."""

    key: str  # "calls.cold": the section, and the kind in it
    name: str  # in the table
    unit: str  # "ms", "/s", "MB"
    measure: Callable[[], Awaitable[Samples]]
    slices: int = 1  # of a round: how often it is measured there

    @property
    def warm_up(self) -> int:
        """How many samples of each slice are thrown away."""
        return WARM_UP if self.slices > 1 else 0


@dataclass
class Results:
    """All rounds of all kinds."""

    kinds: dict[str, Kind] = field(default_factory=dict)  # in the order of the tables
    rounds: dict[str, list[Samples]] = field(default_factory=dict)  # by key, one list a round
    executed: dict[str, tuple[int, int]] = field(default_factory=dict)  # by an agent's key: tools and turns, in all

    def samples(self, key: str) -> Samples:
        return [sample for samples in self.rounds[key] for sample in samples]

    def percentile(self, key: str, percent: int) -> float:
        return percentile(self.samples(key), percent)

    def medians(self, key: str) -> list[float]:
        """The median of each round."""
        return [percentile(samples, 50) for samples in self.rounds[key]]

    def median(self, key: str) -> float:
        return self.percentile(key, 50)

    def as_json(self) -> dict[str, Any]:
        """By key: name, unit, number of samples, p50 and p99 over all of them, the rounds' medians, least and most."""
        return {
            key: {
                "name": kind.name,
                "unit": kind.unit,
                "samples": len(self.samples(key)),
                "p50": rounded(self.percentile(key, 50)),
                "p99": rounded(self.percentile(key, 99)),
                "least": rounded(min(self.medians(key))),
                "most": rounded(max(self.medians(key))),
                "rounds": [rounded(median) for median in self.medians(key)],
            }
            for key, kind in self.kinds.items()
        }


@dataclass(frozen=True)
class Comparison:
    """`of` beside `to`, within each round: their ratio, or with `per` their difference divided by that many.

    Without `to` it is `of` alone, or with `tail` its p99 ÷ its p50, over all rounds. Each of the two is what
    it is `above` another, as above a plain agent.
    """

    name: str
    of: str
    to: str = ""
    per: int = 0
    above: tuple[str, str] | None = None
    tail: bool = False
    goal: float | None = None  # at most, or with `at_least` at least
    at_least: bool = False

    def unit(self, results: Results) -> str:
        return "×" if self.tail or (self.to and not self.per) else results.kinds[self.of].unit

    @property
    def goal_text(self) -> str:
        return "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g}"

    def values(self, results: Results) -> list[float]:
        """One for each round that has both; empty when they were not measured."""
        if self.of not in results.rounds or (self.to and self.to not in results.rounds):
            return []
        if self.tail:
            return [results.percentile(self.of, 99) / results.percentile(self.of, 50)]
        if not self.to:
            return results.medians(self.of)
        pairs = zip(results.medians(self.of), results.medians(self.to), strict=False)
        if self.above:
            plain = (results.medians(key) for key in self.above)
            both = zip(pairs, zip(*plain, strict=False), strict=False)
            return [(of - of_plain) / (to - to_plain) for (of, to), (of_plain, to_plain) in both]
        return [(of - to) / self.per if self.per else of / to for of, to in pairs]

    def holds(self, results: Results) -> bool | None:
        """Whether the goal is met; None when there is none."""
        if self.goal is None:
            return None
        median = statistics.median(self.values(results))
        return median >= self.goal if self.at_least else median <= self.goal

    def as_json(self, results: Results) -> dict[str, Any]:
        """Of what to what, in which unit: median, least and most of the rounds, the goal and whether it holds."""
        values = self.values(results)
        return {
            "of": self.of,
            "to": self.to,
            "unit": self.unit(results),
            "median": rounded(statistics.median(values)),
            "least": rounded(min(values)),
            "most": rounded(max(values)),
            "goal": self.goal_text,
            "holds": self.holds(results),
        }


async def run_rounds(kinds: Sequence[Kind], rounds: int, results: Results, note: Callable[[str], None]) -> None:
    """Measure all kinds once to warm up, and then in so many rounds. `note` is told what comes next."""
    results.kinds |= {kind.key: kind for kind in kinds}
    for number in range(rounds + 1):
        measured: dict[str, Samples] = {kind.key: [] for kind in kinds}
        for kind in _order(kinds, number):
            note(f"{f'round {number} of {rounds}' if number else 'warm-up'}: {kind.name}")
            measured[kind.key] += (await kind.measure())[kind.warm_up :]
        if number:
            for key, samples in measured.items():
                results.rounds.setdefault(key, []).append(samples)


def _order(kinds: Sequence[Kind], number: int) -> list[Kind]:
    """All kinds; then again and again those that have slices left, so that their slices lie close together."""
    shuffled = random.Random(number).sample if number else lambda kinds, _: kinds
    passes = ([kind for kind in kinds if kind.slices > done] for done in range(max(kind.slices for kind in kinds)))
    return [kind for each in passes for kind in shuffled(each, len(each))]


async def timed(work: Awaitable[Any]) -> float:
    """How many milliseconds it takes."""
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1000


async def one_by_one(works: Iterable[Awaitable[Any]]) -> Samples:
    """The milliseconds of each, one after the other."""
    return [await timed(work) for work in works]


async def per_second(work: Callable[[], Awaitable[Any]], times: int, callers: int) -> Samples:
    """How often a second it is done by so many callers, each of which begins anew when it has ended."""
    waiting = iter(range(times))

    async def caller() -> None:
        for _ in waiting:
            await work()

    return [times * 1000 / await timed(asyncio.gather(*(caller() for _ in range(callers))))]


def percentile(samples: Samples, percent: int) -> float:
    """The smallest sample that at least so many percent of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def shown(value: float) -> str:
    """Three digits or so: `0.042`, `1.94`, `23.1`, `1,690`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
