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
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tools
import worker
from nexum_runtime import Worker


def recorded(name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tool)
    async def run(**arguments: Any) -> Any:
        with Path(os.environ["LEDGER"]).open("a") as ledger:
            ledger.write(json.dumps([name, arguments]) + "\n")
        while os.environ.get("HELD", name) == name and not Path(os.environ["GATE"]).exists():
            await asyncio.sleep(0.01)
        result = tool(**arguments)
        return await result if inspect.isawaitable(result) else result

    return run


if __name__ == "__main__":
    tools.TOOLS = {name: recorded(name, tool) for name, tool in tools.TOOLS.items()}
    if "LEASE_MS" in os.environ:
        vars(worker)["Worker"] = functools.partial(Worker, lease_ms=int(os.environ["LEASE_MS"]))
    asyncio.run(worker.main())
