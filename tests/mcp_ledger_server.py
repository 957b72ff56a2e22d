"""An MCP server over stdio whose tools have an effect: a line in the file LEDGER (see agent_process.py)."""

import json
import os
import secrets
import signal
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("ledger", log_level="CRITICAL")  # a tool that raises is no surprise here


def effect(*what: str) -> None:
    ledger = Path(os.environ["LEDGER"])
    with ledger.open("a") as lines:
        lines.write(json.dumps(what) + "\n")
    if len(ledger.read_text().splitlines()) == int(os.environ.get("DIE_AT", 0)):
        os.kill(os.getppid(), signal.SIGKILL)  # the agent, in the middle of its call


@server.tool()
def append(line: str) -> str:
    effect("append", line)
    return f"{line} {secrets.token_hex(4)}"


@server.tool()
def fail() -> str:
    effect("fail")
    raise ValueError(f"Nothing works {secrets.token_hex(4)}.")


if __name__ == "__main__":
    server.run()
