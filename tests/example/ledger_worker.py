"""worker.py as it is, with tools that write a line to the file LEDGER for every real execution.

While the file GATE does not exist, a tool that has begun waits: so that a test can kill something in the middle. With
HELD set, only the tool of that name waits. LEASE_MS shortens the lease: its calls are handed on soon when it is killed.
"""

import asyncio
import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tools
from nexum_agents import worker as agents_worker
from nexum_runtime import Worker

LOOK_SECONDS = 0.01


def recorded(tool: Callable[..., Any]) -> Callable[..., Any]:
    name, signature = tool.__name__, inspect.signature(tool)

    def begin(args: Any, named: Any) -> None:
        with Path(os.environ["LEDGER"]).open("a") as ledger:
            ledger.write(json.dumps([name, signature.bind(*args, **named).arguments]) + "\n")

    def is_held() -> bool:
        return os.environ.get("HELD", name) == name and not Path(os.environ["GATE"]).exists()

    @functools.wraps(tool)
    async def run(*args: Any, **named: Any) -> Any:
        begin(args, named)
        while is_held():
            await asyncio.sleep(LOOK_SECONDS)
        return await tool(*args, **named)

    @functools.wraps(tool)
    def run_sync(*args: Any, **named: Any) -> Any:
        begin(args, named)
        while is_held():
            time.sleep(LOOK_SECONDS)
        return tool(*args, **named)

    return run if inspect.iscoroutinefunction(tool) else run_sync


if __name__ == "__main__":
    tools.TOOLS = [recorded(tool) for tool in tools.TOOLS]
    vars(tools).update({tool.__name__: tool for tool in tools.TOOLS})  # workflow.py calls them by their names
    if "LEASE_MS" in os.environ:
        vars(agents_worker)["RuntimeWorker"] = functools.partial(Worker, lease_ms=int(os.environ["LEASE_MS"]))
    import worker

    worker.main()
