"""Runs that go on in another database: killed on SQLite, copied to PostgreSQL, killed there, and copied back."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import postgres
from processes import NEXUM, NexumDev, eventually, run
from test_agent_processes import KILLED, OFFICE, Agents, Desk, Desks, agents, same

from nexum_runtime import Client

__all__ = ["agents"]  # the fixture


def nothing_runs(address: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        async with Client(address) as client:
            return not (await client.inspect())["running"]

    return look


async def test_a_run_that_was_killed_goes_on_after_each_copy_and_repeats_what_was_cut_off_alone(
    agents: Agents, tmp_path: Path
) -> None:
    in_postgres = postgres.schema_for(tmp_path)
    places = [str(tmp_path / "first.db"), in_postgres, str(tmp_path / "second.db"), f"{in_postgres}_more"]

    async def at(place: str, **kill: str) -> Desk:
        async with NexumDev(tmp_path, "--db", place) as dev:
            desk = Desks(agents, tmp_path, dev.address).open("office")
            ran = await desk.run(**kill)
            await eventually(nothing_runs(dev.address), "the server has seen that the agent has gone")
            dev.kill()
        if kill:
            assert ran.code == KILLED, ran.output
        else:
            answers.append(ran.answer)
        return desk

    async def copied(source: str, target: str) -> None:
        finished = await run(NEXUM, "copy", "--from", source, "--to", target)
        assert finished.code == 0, finished

    answers: list[str] = []
    for place, next_place, line in zip(places, places[1:], (6, 11, 19), strict=False):
        await at(place, DIE_AT=str(line))
        await copied(place, next_place)
    desk = await at(places[-1])
    effects = desk.ledger
    assert desk.repeated == [["model", "triage", turn] for turn in (1, 2, 3)], "nothing else ran when it was killed"
    assert same(effects, OFFICE + desk.repeated)
    await copied(places[-1], str(tmp_path / "third.db"))
    await at(str(tmp_path / "third.db"))
    assert answers[0] == answers[1]
    assert desk.ledger == effects, "a run that has ended does nothing at all"
