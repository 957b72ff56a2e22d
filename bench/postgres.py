"""Calls on PostgreSQL, with one server and with two, and beside them DBOS on the same PostgreSQL.

It is that of NEXUM_TEST_POSTGRES, or one of the benchmark's own, which syncs each commit to the disk.
"""

import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from urllib.parse import urlsplit

from bench import dbos, processes
from bench.asked import Asked
from bench.calls import Caller
from bench.context import SLICES, Context
from bench.measure import Kind, Results, Samples, one_by_one, per_second, shown

CALLERS = 50


def _url(stack: AsyncExitStack) -> str:
    if url := os.environ.get("NEXUM_TEST_POSTGRES"):
        return url
    sys.path.append(str(processes.ROOT / "tests"))
    from postgres import Postgres

    own = Postgres(syncs=True)
    stack.callback(own.remove)
    return own.url


async def kinds(context: Context) -> list[Kind]:
    url = _url(context.stack)

    async def callers(schema: str, servers: int) -> list[Caller]:
        """One a server, of servers that have one database, each with a worker."""
        found = []
        for _ in range(servers):
            database = f"{url}{'&' if '?' in url else '?'}schema=bench_{schema}_{os.getpid()}"
            _, address = await context.stack.enter_async_context(processes.server(context.folder, database))
            await context.worker(address, "bench.effect_worker")
            found.append(Caller(await context.client(address)))
        return found

    (one,), two = await callers("one", 1), cycle(await callers("two", 2))
    calls, slice_calls = context.calls_by(CALLERS), context.slice_calls

    async def cold() -> Samples:
        return await one_by_one(one.cold() for _ in range(slice_calls))

    async def local() -> Samples:
        return await one_by_one(one.local() for _ in range(slice_calls))

    async def cached() -> Samples:
        return await one_by_one(one.cached(each) for each in one.ended[-slice_calls:])

    found = [
        Kind("postgres.cold", "cold", "ms", cold, SLICES),
        Kind("postgres.local", "cold, local effect", "ms", local, SLICES),
        Kind("postgres.cached", "cached", "ms", cached, SLICES),
        Kind("postgres.at_50", "cold, 50 at a time", "/s", partial(per_second, one.cold, calls, CALLERS)),
        Kind(
            "postgres.two_at_50",
            "…, two servers",
            "/s",
            partial(per_second, lambda: next(two).cold(), calls, CALLERS),
        ),
    ]
    if dbos.is_installed():
        name = urlsplit(url).path
        its = url.replace(name, f"/bench_dbos_{os.getpid()}", 1) if name.strip("/") else url
        ask = (await Asked.start(context, "bench.dbos_process", its, name="dbos-postgres")).measure
        found += [
            Kind("postgres.dbos_step", "DBOS: step, cold", "ms", partial(ask, "step", slice_calls), SLICES),
            Kind("postgres.dbos_again", "DBOS: step, replayed", "ms", partial(ask, "step_again", context.calls)),
            Kind("postgres.dbos_at_50", "DBOS: 50 at a time", "/s", partial(ask, "steps_at_once", calls, CALLERS)),
        ]
    return found


def sentence(results: Results) -> str:
    return (
        f"On PostgreSQL a call that is executed takes {shown(results.median('postgres.cold'))} ms more than its tool, "
        f"and {shown(results.median('postgres.cached'))} ms from then on."
    )
