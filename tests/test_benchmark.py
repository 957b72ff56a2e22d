"""The benchmark runs, measures what it says, and leaves nothing behind."""

import re
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


async def test_the_benchmark_reports_each_kind_of_run_and_that_a_run_again_does_nothing_anew(
    tmp_path: Path, env: dict[str, str]
) -> None:
    finished = await run(sys.executable, ROOT / "benchmark.py", "--rounds", "1", env=env, cwd=tmp_path)
    assert finished.code == 0, finished
    assert "median of 1 × 20 calls in 20 turns, offline, 0 ms a search" in finished.stdout
    times = r" +\d+\.\d\d s +[\d.]+ – [\d.]+ s +\d+\.\d\d +\d+\.\d ms +\d+\.\d ms *$"
    rows = re.findall(rf"(?m)^ +(\S.*\S){times}", finished.stdout)
    assert rows == ["plain", "on Nexum, cold", "tools replayed ⚡", "all replayed ⚡"]
    told = " ".join(finished.stdout.split())
    assert "It executes 0 tools and asks 0 turns anew; with its tools replayed alone, 0 and 20." in told
    assert max(len(line.rstrip()) for line in finished.stdout.splitlines()) <= 80
    assert list(tmp_path.iterdir()) == []


async def test_live_without_a_key_says_what_is_missing(tmp_path: Path, env: dict[str, str]) -> None:
    finished = await run(sys.executable, ROOT / "benchmark.py", "--live", env=env, cwd=tmp_path)
    assert finished.code == 2
    assert "--live needs OPENAI_API_KEY or GEMINI_API_KEY" in finished.stderr
