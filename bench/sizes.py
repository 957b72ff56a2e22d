"""Sizes: results from 1 KB to 5 MB, when they are executed and recorded, and when they come from the store."""

from bench.calls import Caller
from bench.context import Context
from bench.measure import Kind, Results, Samples, one_by_one, shown

SIZES = {"1 KB": 1_000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000, "5 MB": 5_000_000}
BYTES_A_ROUND = 10_000_000  # and at least one call


async def kinds(context: Context) -> list[Kind]:
    client = (await context.nexum()).client

    def both(name: str, chars: int) -> list[Kind]:
        caller, input = Caller(client), {"chars": chars}
        times = max(1, min(context.calls, BYTES_A_ROUND // chars))

        async def cold() -> Samples:
            return await one_by_one(caller.cold(input=input) for _ in range(times))

        async def cached() -> Samples:
            return await one_by_one(caller.cached(execution_id, input) for execution_id in caller.ended[-times:])

        key = name.replace(" ", "")
        return [
            Kind(f"sizes.{key}", f"{name}, cold", "ms", cold),
            Kind(f"sizes.{key}_cached", f"{name}, cached", "ms", cached),
        ]

    return [kind for name, chars in SIZES.items() for kind in both(name, chars)]


def sentence(results: Results) -> str:
    small, large = results.median("sizes.1KB"), results.median("sizes.5MB")
    return f"A result of 5 MB takes {shown(large)} ms to record, one of 1 KB {shown(small)} ms."
