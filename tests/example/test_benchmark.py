"""The benchmark runs, measures what it says, and leaves nothing behind."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import check_database
from processes import Process, environment, eventually, run
from test_demo import KEYS

from bench.context import SLICES
from bench.measure import WARM_UP, Comparison, Kind, Results, per_second, run_rounds
from bench.stored import fill
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.server.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0  # it takes ten, and much more where other tests run beside it


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in environment().items() if name not in KEYS}
    (tmp_path / "temporary").mkdir()
    return clean | {"TMPDIR": str(tmp_path / "temporary")}


async def benchmark(tmp_path: Path, env: dict[str, str], *flags: str) -> tuple[str, dict[str, Any]]:
    """What a small run of it prints and writes; nothing else may be left of it."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    small = ("--rounds", "1", "--calls", "3", "--tool-ms", "1", "--json", "results.json")
    finished = await run(
        sys.executable, ROOT / "benchmark.py", *small, *flags, env=env, cwd=cwd, seconds=PATIENCE_SECONDS
    )
    assert finished.code == 0, finished
    assert max(len(line.rstrip()) for line in finished.stdout.splitlines()) <= 80
    assert list((tmp_path / "temporary").iterdir()) == []
    return finished.stdout, json.loads((cwd / "results.json").read_text())


def check(written: dict[str, Any], *sections: str) -> dict[str, Any]:
    """The measurements, when they are those of these sections, and are shaped as they should be."""
    measurements: dict[str, Any] = written["measurements"]
    assert {key.partition(".")[0] for key in measurements} == set(sections)
    for key, told in measurements.items():
        assert told["unit"] in ("ms", "/s", "MB"), key
        assert 0 < told["least"] <= told["p50"] <= told["most"], key
        assert told["p50"] <= told["p99"], key
        assert len(told["rounds"]) == written["rounds"] == 1, key
    return measurements


async def test_calls_and_agents_are_measured_beside_the_floor(tmp_path: Path, env: dict[str, str]) -> None:
    printed, written = await benchmark(tmp_path, env, "--only", "floor", "calls", "agent", "sizes", "--chart", "chart")
    assert re.findall(r"(?m)^(\w+) *$", printed) == ["floor", "calls", "agent", "sizes"]
    assert "Run again it executed 0 tools and asked 0 turns." in " ".join(printed.split())
    measurements = check(written, "floor", "calls", "agent", "agent_slow", "sizes")
    assert measurements["calls.idempotent"]["samples"] == measurements["floor.call"]["samples"] == SLICES
    assert measurements["calls.tool"]["samples"] == measurements["calls.tool_cached"]["samples"] == 3
    executed = {"plain": (20, 20), "cold_tools": (20, 20), "cold": (20, 20), "tools": (0, 20), "all": (0, 0)}
    assert written["executed"] == {
        f"{agent}.{kind}": {"tools": tools, "turns": turns}
        for agent in ("agent", "agent_slow")
        for kind, (tools, turns) in executed.items()
    }
    ratio = written["comparisons"]["50 calls at a time ÷ the least"]
    expected = measurements["calls.at_50"]["p50"] / measurements["floor.at_50"]["p50"]
    assert ratio["median"] == pytest.approx(expected, rel=0.01)
    assert (ratio["goal"], ratio["holds"]) == ("≥ 0.8", ratio["median"] >= 0.8)
    assert written["made"]["command"].startswith("python benchmark.py --rounds 1 --calls 3")
    assert {path.name for path in (tmp_path / "cwd/chart").iterdir()} == {"benchmark.svg", "benchmark.png"}


async def test_growth_is_measured_with_stored_calls_and_dbos_beside_it(tmp_path: Path, env: dict[str, str]) -> None:
    printed, written = await benchmark(tmp_path, env, "--only", "growth", "dbos")
    assert re.findall(r"(?m)^(\w+) *$", printed) == ["growth", "dbos"]
    measurements = check(written, "growth", "dbos")
    assert {key for key in measurements if key.startswith("growth.cold")} == {"growth.cold_100", "growth.cold_10000"}
    assert measurements.keys() >= {"growth.map_1000"}
    assert written["comparisons"]["cold call, 10,000 stored ÷ 100"]["goal"] == "≤ 1.2"


async def test_stored_calls_are_whole_copies_with_numbers_of_their_own(tmp_path: Path) -> None:
    database, ir_json = tmp_path / "nexum.db", '{"nodes":{"run":{"type":"EFFECT","dependencies":[]}}}'
    engine = Engine(store := SqliteStore(database))
    await engine.register("w", "h", ir_json)
    await engine.start(StartOrder("w", "h", "{}", "original"))
    claimed = await engine.poll("worker", "h", ["w"], 10_000)
    assert claimed is not None
    await engine.complete(claimed.task.task_id, '"done"')
    await store.close()
    fill(database, [(f"copy/{n}", f'{{"n":{n}}}') for n in range(3)])
    assert list(check_database(tmp_path)) == []
    engine = Engine(store := SqliteStore(database))
    snapshot, original = await engine.history("original")
    for n in range(3):
        copy, events = await engine.history(f"copy/{n}")
        assert (copy.execution.input_json, copy.outputs) == (f'{{"n":{n}}}', snapshot.outputs)
        assert events == original
        (task,) = await store.read(lambda reader, n=n: reader.tasks(f"copy/{n}"))  # type: ignore[misc]
        assert "was completed already" in await engine.complete(task.task_id, '"again"')
    await store.close()


async def test_rounds_measure_all_kinds_in_changing_orders_and_what_warms_up_is_thrown_away() -> None:
    measured: list[str] = []
    results = Results()

    def kind(key: str, slices: int) -> Kind:
        async def measure() -> list[float]:
            measured.append(key)
            return [0.0] * (WARM_UP if slices > 1 else 0) + [float(len(measured))]

        return Kind(key, key, "ms", measure, slices)

    kinds = [kind(key, 1) for key in "abcd"] + [kind(key, 3) for key in "ef"]
    await run_rounds(kinds, 8, results, lambda what: None)
    orders = ["".join(measured[start : start + 10]) for start in range(0, len(measured), 10)]
    assert orders[0] == "abcdefefef"
    assert len(orders) == 9
    assert all((sorted(order[:6]), sorted(order[6:])) == (list("abcdef"), list("eeff")) for order in orders)
    assert len(set(orders)) > 4
    assert results.rounds["a"] == [[10.0 * number + orders[number].index("a") + 1] for number in range(1, 9)]
    assert [len(samples) for samples in results.rounds["e"]] == [3] * 8
    assert 0.0 not in results.samples("e")


def test_percentiles_are_over_all_calls_and_comparisons_within_each_round() -> None:
    results = Results()
    for of, to in (([1.0, 2.0, 90.0], [1.0]), ([6.0], [2.0]), ([40.0], [8.0])):
        results.rounds.setdefault("of", []).append(of)
        results.rounds.setdefault("to", []).append(to)
    assert results.samples("of") == [1, 2, 90, 6, 40]
    assert (results.percentile("of", 50), results.percentile("of", 99)) == (6, 90)
    assert results.medians("of") == [2, 6, 40]
    assert Comparison("ratio", "of", "to").values(results) == [2, 3, 5]
    assert Comparison("difference", "of", "to", per=2).values(results) == [0.5, 2, 16]
    assert Comparison("tail", "of", tail=True).values(results) == [15]
    assert Comparison("alone", "of").values(results) == [2, 6, 40]
    assert Comparison("not measured", "of", "other").values(results) == []
    assert [Comparison("goal", "of", "to", goal=goal).holds(results) for goal in (3, 2.9)] == [True, False]
    assert [Comparison("goal", "of", "to", goal=goal, at_least=True).holds(results) for goal in (3, 3.1)] == [
        True,
        False,
    ]


async def test_a_round_of_callers_does_so_much_and_no_more() -> None:
    begun, at_once, most = 0, 0, 0

    async def work() -> None:
        nonlocal begun, at_once, most
        begun, at_once = begun + 1, at_once + 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    (rate,) = await per_second(work, 20, 4)
    assert (begun, most) == (20, 4)
    assert rate > 0


async def test_ctrl_c_stops_all_that_was_started(tmp_path: Path, env: dict[str, str]) -> None:
    process = Process([sys.executable, ROOT / "benchmark.py", "--only", "agent"], tmp_path / "log", env=env)
    process.start()
    logs = tmp_path / "temporary"
    await eventually(lambda: sum("Connected to Nexum" in log.read_text() for log in logs.glob("*/worker*.log")) == 2)
    process.send(signal.SIGINT)
    assert await process.ended() == 130, process.output
    assert list(logs.iterdir()) == []
    running = await run("ps", "-eo", "args")
    assert str(logs) not in running.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--live"], "--live needs OPENAI_API_KEY or GEMINI_API_KEY"),
        (["--json", "nowhere/results.json"], "--json: there is no folder"),
    ],
)
async def test_what_cannot_be_measured_is_said_in_a_sentence(flags: list[str], said: str, env: dict[str, str]) -> None:
    finished = await run(sys.executable, ROOT / "benchmark.py", *flags, env=env)
    assert finished.code == 2
    assert said in finished.stderr


async def test_calls_on_postgresql_are_measured_beside_dbos_on_the_same_one(
    tmp_path: Path, env: dict[str, str]
) -> None:
    shown, written = await benchmark(tmp_path, env, "--only", "postgres")
    measured = check(written, "postgres")
    assert {"postgres.cold", "postgres.two_at_50", "postgres.dbos_step"} <= measured.keys()
    assert re.search(r"PostgreSQL: cold call ÷ DBOS +[\d.]+ ×", shown)
