"""A run of workers of which everything is killed: its worker, the server, and who follows it."""

from collections import Counter
from pathlib import Path

import pytest
from processes import NexumDev, eventually
from test_following import Watching
from test_started_runs import ALL, ANSWER, Fleet

from nexum_agents import start_run
from nexum_agents.following import KINDS
from nexum_runtime import Client

LEASE_MS = "1000"


@pytest.mark.parametrize("line", range(1, len(ALL) + 1))
async def test_whoever_follows_hears_all_of_it_once_and_in_order_whatever_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int
) -> None:
    async with NexumDev(tmp_path) as nexum:
        monkeypatch.setenv("NEXUM_ADDRESS", nexum.address)
        fleet = Fleet(tmp_path, nexum.address)
        try:
            dying = fleet.start(DIE_AT=str(line), LEASE_MS=LEASE_MS)
            await dying.says("Connected")
            run = await start_run("Researcher", "go", session_id="s1")
            stays, leaves = Watching(), Watching()
            await eventually(lambda: leaves.events, "something to follow")
            await dying.ended()
            await nexum.restart()
            comes_again = Watching(after=await leaves.leave())
            fleet.start(LEASE_MS=LEASE_MS)
            assert (await run.result()).final_output == ANSWER
            heard = [await stays.ended(), leaves.events + await comes_again.ended(), await Watching().ended()]
            async with Client(nexum.address) as client:
                histories = [each async for each in client.history("s1/")]
        finally:
            fleet.kill()
    for history in histories:
        events = [(KINDS.get(event["type"]), event["attempt"]) for event in history["events"]]
        is_end = history["labels"].get("kind") == "run"
        recorded = [each for each in events if each[0] and not (is_end and each[0] == "begun")]
        for told in heard:
            of_this = [each for each in told if each.execution_id == history["execution_id"] and each.kind != "words"]
            assert [(each.kind, each.attempt) for each in of_this] == recorded
    for told in heard:
        times = [each.at_ms for each in told if each.at_ms is not None]
        assert times == sorted(times)
    cut_short = {3: {"look_up durable", "note durable"}}.get(line, {list(ALL)[line - 1]})  # a step is within its call
    assert fleet.effects == Counter({what: 1 + (what in cut_short) for what in ALL}), "and nothing else is done again"
