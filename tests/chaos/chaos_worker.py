"""A worker of the package, with the tools of chaos_tools.py and short leases."""

import functools
import sys

from agents import function_tool
from chaos_tools import IN_THE_WORKER, LEASE_MS

from nexum_agents import serve, worker
from nexum_runtime import Worker

if __name__ == "__main__":
    vars(worker)["RuntimeWorker"] = functools.partial(Worker, lease_ms=LEASE_MS)
    tools = [function_tool(function, name_override=name) for name, function in IN_THE_WORKER.items()]
    serve(tools, concurrency=int(sys.argv[1]))
