"""A process for test_local.py that executes an effect itself: `python local_process.py EXECUTION_ID`.

Every real execution is a line in the file LEDGER; what has begun waits while the file GATE does not exist. The last
line it prints is what came of it. With OWN_LOOP set it leaves its event loop as it is, as `Runner.run_sync` does.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from nexum import workflow
from pydantic import BaseModel

from nexum_runtime import Client, idempotency_key
from nexum_runtime.client import local


class Answer(BaseModel):
    text: str


async def unused(_: Any) -> Answer:
    raise AssertionError("no worker runs")


ASK = workflow("ask").effect("ask", Answer, unused).build()


async def ask() -> Any:
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        ledger.write(json.dumps([os.getpid(), idempotency_key()]) + "\n")
    while not Path(os.environ["GATE"]).exists():
        await asyncio.sleep(0.01)
    return {"text": f"by {os.getpid()}"}


async def main() -> None:
    client = Client(os.environ["NEXUM_ADDRESS"])
    outcome = await client.run_local(
        ASK, {}, ask, execution_id=sys.argv[1], effect=os.environ.get("EFFECT"), restart="failed"
    )
    print(json.dumps([outcome.status, outcome.error_code or outcome.outputs["ask"]["text"]]))


if __name__ == "__main__":
    local.LEASE_MS = int(os.environ.get("LEASE_MS", local.LEASE_MS))
    if "OWN_LOOP" in os.environ:
        asyncio.new_event_loop().run_until_complete(main())
    else:
        asyncio.run(main())
