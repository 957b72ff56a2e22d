"""An MCP server over stdio whose tools have an effect: a line in the file LEDGER (see agent_process.py).

It speaks the protocol itself: each run of an agent starts one, and importing an SDK would take longer than the run.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

TOOLS = [
    {"name": "append", "inputSchema": {"type": "object", "properties": {"line": {"type": "string"}}}},
    {"name": "fail", "inputSchema": {"type": "object", "properties": {}}},
]


def effect(*what: str) -> None:
    ledger = Path(os.environ["LEDGER"])
    with ledger.open("a") as lines:
        lines.write(json.dumps(what) + "\n")
    if len(ledger.read_text().splitlines()) == int(os.environ.get("DIE_AT", 0)):
        os.kill(os.getppid(), signal.SIGKILL)  # the agent, in the middle of its call


def call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    effect(name, *arguments.values())
    text = f"{'Nothing works' if name == 'fail' else arguments['line']} {os.urandom(4).hex()}"
    return {"content": [{"type": "text", "text": text}], "isError": name == "fail"}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "initialize":
            about = {"name": "ledger", "version": "1"}
            version = params["protocolVersion"]
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}}
        case "tools/list":
            return {"result": {"tools": TOOLS}}
        case "tools/call":
            return {"result": call(params["name"], params.get("arguments") or {})}
    return {"error": {"code": -32601, "message": f"{method} is no method of this server."}}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:  # else it is a notification
        answered = answer(asked["method"], asked.get("params", {}))
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answered}), flush=True)
