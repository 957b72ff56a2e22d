"""The six scripts as files that people read, and what they cost before their first word."""

import subprocess
import sys

import pytest
from test_demo import ROOT

SCRIPTS = ("benchmark.py", "demo.py", "submit_task.py", "tools.py", "worker.py", "workflow.py")
LINES_MAX = 150

AT_THE_FIRST_WORD = """
import os, runpy, sys

ours = {"__main__", "offline", "offline.choosing", "offline.ctrl_c", "offline.needed", "offline.screen"}
before = set(sys.modules)

class Stdout:
    def write(self, text):
        known = sys.stdlib_module_names
        loaded = {name for name in set(sys.modules) - before if name.partition(".")[0] not in known} - ours
        sys.__stdout__.write(repr((text.split()[0], sorted(loaded))))
        sys.__stdout__.flush()
        os._exit(0)

    def __getattr__(self, name):
        return getattr(sys.__stdout__, name)

sys.stdout = Stdout()
sys.argv = ["demo.py"]
sys.path.insert(0, ".")
runpy.run_path("demo.py", run_name="__main__")
"""


def test_the_example_is_six_scripts() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == list(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_enough_to_be_read_from_top_to_bottom(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    assert text.startswith('"""'), "it opens by saying what it shows"


def test_the_header_is_there_before_anything_is_imported_that_takes_time() -> None:
    command = [sys.executable, "-c", AT_THE_FIRST_WORD]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout == repr(("Question", [])), finished


def test_a_worker_refuses_two_tools_of_one_name_in_a_sentence() -> None:
    serving = "from nexum_agents import serve\nfrom tools import web_search\nserve([web_search, web_search])"
    finished = subprocess.run(
        [sys.executable, "-c", serving], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    said = "Two tools are called 'web_search': a worker could not tell whose a call is. Rename one.\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", said)
