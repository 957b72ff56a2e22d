"""A server that is killed in a fan-out, a fan-in, or a child's start or end leaves nothing stuck or done twice."""

import asyncio
from collections import Counter
from pathlib import Path

import postgres
import pytest
from chaos_parts import EXPECTED, ITEMS, POINTS, check_parts, run_parts
from processes import NexumDev, environment, eventually

from nexum_runtime import Client


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_server_that_is_killed_there_leaves_nothing_stuck(tmp_path: Path, point: str, kind: str) -> None:
    options = ["--db", postgres.schema_for(tmp_path)] if kind == "postgres" else []
    async with NexumDev(tmp_path, *options) as nexum:
        env = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT=point)
        nexum.kill()
        dying = NexumDev(tmp_path, *options, port=nexum.port, env=env)
        dying.start()
        await dying.ready()
        running = asyncio.create_task(run_parts(nexum.address, "s/parts"))
        await eventually(lambda: not dying.alive, f"its death at {point}")
        await nexum.restart()
        check_parts(await running)
        async with Client(nexum.address) as client:
            histories = {each["execution_id"]: each async for each in client.history("s/")}
        assert set(histories) == {"s/parts", "s/parts/child", "s/parts/child/child"}
        for execution_id, history in histories.items():
            assert history["status"] == "COMPLETED"
            done = Counter(event["node_id"] for event in history["events"] if event["type"] == "TaskCompleted")
            assert set(done.values()) == {1}, f"{execution_id}: {done}"
        assert sum(node.startswith("each__") for node in done) == ITEMS
        assert EXPECTED > ITEMS
