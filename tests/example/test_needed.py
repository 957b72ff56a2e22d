"""What a script cannot run without is said in a sentence, with the command that helps."""

import sys
from pathlib import Path

import pytest
from processes import environment, run

from offline import needed

ROOT = Path(__file__).parents[2]
SCRIPTS = ("demo.py", "worker.py", "workflow.py", "submit_task.py", "benchmark.py")


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_script_outside_of_the_environment_says_how_to_make_one(script: str, tmp_path: Path) -> None:
    (tmp_path / script).write_text((ROOT / script).read_text())
    (tmp_path / "offline").symlink_to(ROOT / "offline")
    alone = (sys.executable, "-S", tmp_path / script)  # without the packages of the environment
    finished = await run(*alone, env=environment(), cwd=tmp_path)
    assert finished.code == 1
    assert finished.stderr.startswith("The packages are not installed for ")
    assert finished.stderr.rstrip().endswith("pip install -r requirements.txt")
    assert finished.stderr.count("\n") == 2


def test_an_environment_that_is_missing_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "find_spec", lambda _: None)
    monkeypatch.setattr(needed, "ENVIRONMENT", Path("/nowhere"))
    with pytest.raises(SystemExit, match=r"\n  python3 -m venv \.venv && "):
        needed.check()


def test_on_windows_a_script_says_what_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="inside of WSL"):
        needed.check()


async def test_on_windows_the_server_says_what_works_there() -> None:
    without_locks = "import sys; sys.modules['fcntl'] = None; sys.argv = ['nexum', 'dev', '--port', '0']; "
    finished = await run(sys.executable, "-c", f"{without_locks}from nexum_runtime.cli import main; main()")
    assert (finished.code, finished.stdout) == (1, "")
    assert "inside of WSL" in finished.stderr
    assert finished.stderr.count("\n") == 1, finished


@pytest.mark.parametrize("script", ["demo.py", "workflow.py"])
async def test_a_session_id_that_is_none_is_named_as_the_variable_that_it_came_from(
    script: str, tmp_path: Path
) -> None:
    finished = await run(sys.executable, ROOT / script, env=environment(SESSION_ID="no/slash"), cwd=tmp_path)
    assert finished.code == 1
    assert finished.stderr == "SESSION_ID is 'no/slash'; it must be 1 to 64 characters of A-Za-z0-9._-\n"


async def test_a_delay_that_is_no_number_is_told_before_anything_is_done() -> None:
    for script in ("worker.py", "demo.py", "submit_task.py"):
        finished = await run(sys.executable, ROOT / script, "x", env=environment(OFFLINE_WEB_DELAY_MS="abc"))
        assert finished.code == 1
        assert finished.stderr == "OFFLINE_WEB_DELAY_MS is 'abc'; it must be a whole number of milliseconds.\n"
