"""Followers of sessions, which tell how long words take to them: each line of words is the time when it was said.

python -m bench.follow_process ADDRESS FOLLOWERS FILE SESSION …     # so many followers of each session
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from nexum_runtime import Client

END = "end"  # the last line that is said in a session


async def main(address: str, followers: str, file: str, *sessions: str) -> None:
    delays_ms: list[float] = []
    left = int(followers) * len(sessions)

    async def follow(client: Client, session_id: str) -> None:
        nonlocal left
        async for told in client.follow(session_id):
            if told.get("type") == "CaughtUp":
                left -= 1
                if not left:
                    print("ready", flush=True)
            if "words" in told:
                now, lines = time.perf_counter(), told["words"].split()
                delays_ms.extend((now - float(line)) * 1000 for line in lines if line != END)
                if lines[-1] == END:
                    return

    async with Client(address) as client, asyncio.TaskGroup() as group:
        for session_id in sessions:
            for _ in range(int(followers)):
                group.create_task(follow(client, session_id))
    Path(file).write_text(json.dumps(delays_ms))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
