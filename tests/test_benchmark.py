"""The benchmark runs, measures what it says, and leaves nothing behind."""

import sys
from pathlib import Path

import pytest
from processes import environment, run
from test_demo import KEYS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def env() -> dict[str, str]:
    clean = {name: value for name, value in environment().items() if name not in KEYS}
    return clean | {"OFFLINE_WEB_DELAY_MS": "0"}


async def test_the_benchmark_reports_each_kind_of_run_and_that_cached_executes_no_tool(
    tmp_path: Path, env: dict[str, str]
) -> None:
    finished = await run(sys.executable, ROOT / "benchmark.py", "--rounds", "1", env=env, cwd=tmp_path)
    assert finished.code == 0, finished
    assert "median of 1 × 5 tool calls, offline, 0 ms a page" in finished.stdout
    for kind in ("plain", "on Nexum, cold", "on Nexum, cached ⚡"):
        assert kind in finished.stdout
    assert "and executes no tool." in finished.stdout
    assert list(tmp_path.iterdir()) == []


async def test_live_without_a_key_says_what_is_missing(tmp_path: Path, env: dict[str, str]) -> None:
    finished = await run(sys.executable, ROOT / "benchmark.py", "--live", env=env, cwd=tmp_path)
    assert finished.code == 2
    assert "--live needs OPENAI_API_KEY or GEMINI_API_KEY" in finished.stderr
