"""Everything that people look at of the server at an address and of one large session, again and again, until it is
stopped."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from nexum_runtime import Client
from nexum_runtime.server.methods.methods import LIST_LIMIT


async def _history(client: Client, session_id: str) -> None:
    async for _ in client.history(f"{session_id}/"):
        pass


LOOKS: list[Callable[[Client, str], Awaitable[Any]]] = [
    _history,
    lambda client, _: client.sessions(),
    lambda client, session_id: client.listed(prefix=f"{session_id}/", limit=LIST_LIMIT),
    lambda client, session_id: client.journal(f"{session_id}/"),
    lambda client, _: client.inspect(),
]


async def main(address: str, session_id: str) -> None:
    async def for_ever(look: Callable[[Client, str], Awaitable[Any]]) -> None:
        while True:
            await look(client, session_id)

    async with Client(address) as client, asyncio.TaskGroup() as looking:
        await client.check()
        print("ready", flush=True)
        for look in LOOKS:
            looking.create_task(for_ever(look))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
