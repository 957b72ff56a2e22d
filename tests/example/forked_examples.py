"""Runs examples, each in a process of its own, forked from this one, which has imported already what takes long.

A line on stdin asks for a run: {"command": [path, …], "env": {…}, "cwd": …, "input": a file, "output": a file}. Its
process id is the answer on stdout. When it ends, its exit code is in the file `{pid}.code` in the folder that this
program was given.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import agents.testing  # noqa: F401

import nexum_agents  # noqa: F401
from nexum_runtime import crash


def reap(*_: Any) -> None:
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            new = Path(sys.argv[1], f"{ended[0]}.new")
            new.write_text(str(os.waitstatus_to_exitcode(ended[1])))
            new.rename(new.with_suffix(".code"))
    except ChildProcessError:
        pass


def run(request: dict[str, Any]) -> None:
    """Become the example."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(request["input"], os.O_RDONLY), 0)
    os.dup2(os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(1, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    importlib.reload(crash)
    sys.argv = request["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, reap)
    gc.freeze()  # what is imported is the same in all of them
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
        else:
            run(json.loads(line))
            break
