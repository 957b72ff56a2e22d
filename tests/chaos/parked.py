"""Many runs of one worker, parked until a person answers: what the worker holds meanwhile, and whether all end.

    python tests/chaos/parked.py [RUNS]

Prints its memory idle, after one run, with RUNS runs parked (1,000), and how long it took until all had ended.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import NexumDev, Process, environment

from nexum_agents import start_run
from nexum_runtime import Client

WORKER = Path(__file__).parents[1] / "agents" / "paying_worker.py"
CONCURRENCY = 20
LOOK_SECONDS = 0.2
HOURS = 3_600.0


def memory_mib(process: Process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


async def states(client: Client, count: int) -> Counter[str]:
    runs = await client.listed("", 10_000, workflow_id="openai-agents-run Payer")
    return Counter(each["status"] for each in runs[:count])


async def until(client: Client, state: str, count: int) -> float:
    began = time.monotonic()
    while (await states(client, count))[state] < count:
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic() - began


async def answer(client: Client) -> None:
    while asked := await client.approvals():
        await asyncio.gather(*(client.approve(each.execution_id, each.node_id, "anna") for each in asked))


async def main(count: int, folder: Path) -> None:
    async with NexumDev(folder) as nexum, Client(nexum.address) as client:
        os.environ["NEXUM_ADDRESS"] = nexum.address
        ledger = folder / "ledger"
        env = environment(NEXUM_ADDRESS=nexum.address, LEDGER=str(ledger), CONCURRENCY=str(CONCURRENCY))
        worker = Process([sys.executable, str(WORKER)], folder / "worker.log", env=env)
        worker.start()
        try:
            await worker.says("Connected")
            idle = memory_mib(worker)
            first = [await start_run("Payer", "1", session_id=f"first{n}") for n in range(CONCURRENCY)]
            await until(client, "PARKED", CONCURRENCY)
            await answer(client)
            await asyncio.gather(*(run.result() for run in first))
            used = memory_mib(worker)
            print(f"idle {idle:.0f} MiB; idle after {CONCURRENCY} runs {used:.0f} MiB")
            runs = [await start_run("Payer", "1", session_id=f"s{n}") for n in range(count)]
            seconds = await until(client, "PARKED", count)
            parked = memory_mib(worker)
            print(f"{count} parked, {seconds:.1f} s after the last start: {parked:.0f} MiB, {parked / used:.2f} times")
            began = time.monotonic()
            await answer(client)
            print(f"all answered within {time.monotonic() - began:.1f} s")
            outcomes = await asyncio.gather(*(run.result(timeout=HOURS) for run in runs))
            print(f"{len(outcomes)} runs ended {time.monotonic() - began:.1f} s after the first answer")
            assert {each.final_output for each in outcomes} == {"paid 0"}
            effects = Counter(json.loads(line)[0] for line in ledger.read_text().splitlines())
            assert effects["pay"] == count + CONCURRENCY, effects
            assert parked <= 1.2 * used, "the worker holds what is parked"
            print(f"each paid once; the model was asked {effects['model']} times")
        finally:
            worker.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 1_000, Path(folder)))
