"""Calls to a server that is far away, over connections that are reset, slow, or go silent."""

import asyncio
from pathlib import Path

import pytest
from far import far, make_calls
from processes import NexumDev, eventually

from nexum_runtime import Client


@pytest.mark.parametrize(
    ("round_trip_ms", "more"),
    [(5, {"reset_share": 0.1}), (80, {"reset_share": 0.1}), (80, {"bytes_per_second": 100_000.0}), (800, {})],
    ids=["5 ms with resets", "80 ms with resets", "80 ms and slow", "800 ms"],
)
async def test_calls_are_recorded_once_however_far_the_server_is(
    tmp_path: Path, round_trip_ms: int, more: dict[str, float]
) -> None:
    async with NexumDev(tmp_path) as dev, far(dev.port, round_trip_ms=round_trip_ms, **more) as way:
        await make_calls(way, "far", 10)


async def test_a_connection_that_goes_silent_for_a_while_goes_on(tmp_path: Path) -> None:
    async with (
        NexumDev(tmp_path) as dev,
        far(dev.port, round_trip_ms=20) as way,
        Client(f"localhost:{way.port}") as client,
    ):
        await client.check(20.0)
        way.is_held = True
        checking = asyncio.create_task(client.check(20.0))
        await eventually(lambda: way.held)
        assert not checking.done()
        way.is_held = False
        await checking
        assert way.connections == 1
        way.cut()
        await client.check(20.0)
        assert way.connections == 2
