"""worker.py as it is, with the tools of chaos_tools.py."""

import asyncio
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from chaos_tools import IN_THE_WORKER, LEASE_MS

import tools
import worker
from nexum_runtime import Worker

if __name__ == "__main__":
    tools.TOOLS = dict(IN_THE_WORKER)
    vars(worker)["Worker"] = functools.partial(Worker, lease_ms=LEASE_MS)
    asyncio.run(worker.main())
