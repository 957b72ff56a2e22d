"""What servers on one database tell each other: by NOTIFY, each in connections and threads of its own.

Not in the transactions that it tells of: PostgreSQL lets only one that notifies commit at a time.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from nexum_runtime.logs import Log
from nexum_runtime.server.store.postgres import database
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.place import Place

MESSAGE_BYTES = 7_900  # PostgreSQL takes up to 8,000
MARK = "0"  # told by each server to itself, to know how long that takes; the others pass it over
MARK_AGAIN_SECONDS = 5.0  # without it; a broken connection has lost it
LOOK_SECONDS = 1.0  # between two looks whether it is to end, and at the clock
AGAIN_SECONDS = 0.2  # until a connection that broke is made anew
UNTOLD_LIMIT = 100_000  # words that wait to be told; beyond, they are lost

log = Log("nexum.engine")


class Talk:
    """As long as it listens, this server is there for the others: also while it is paused in the middle of a write, and
    when its network falls silent, as PostgreSQL does not look after this connection as it does after that which writes.

    `heard` is told, in the loop, what others have said, and of nothing when some of it may have been lost.

    `measured` is told, in a thread, by how many milliseconds PostgreSQL's clock is ahead of this machine's.
    """

    def __init__(
        self,
        place: Place,
        server: str,
        heard: Callable[[Sequence[list[Any]]], None],
        measured: Callable[[int], None],
    ) -> None:
        self._place, self._server, self._heard, self._measured = place, server, heard, measured
        self._loop = asyncio.get_running_loop()
        self._channel = f"nexum {place.schema}"[:63]
        self._untold: deque[list[Any] | None] = deque(maxlen=UNTOLD_LIMIT)  # None: a mark
        self._marked: float | None = None  # since when a mark is on its way …
        self._marked_last = 0.0  # … and when one was told last
        self._lag_seconds = 0.0  # of the last one that came
        self._something = threading.Event()
        self.listens = False
        self._has_warned = False
        self._ends = False
        self._own_process = 0  # PostgreSQL's, of the connection that tells
        self._threads = [
            threading.Thread(target=run, name=f"nexum-store-{name}", daemon=True)
            for name, run in (("listen", self._listen), ("tell", self._tell))
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, words: Sequence[list[Any]]) -> None:
        self._untold.extend(words)
        self._something.set()

    def lag_seconds(self) -> float:
        """How long a word is on its way at the moment."""
        marked = self._marked
        return max(self._lag_seconds, 0.0 if marked is None else time.monotonic() - marked)

    def close(self) -> None:
        self._ends = True
        self._something.set()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        while not self._ends:
            try:
                connection = Connection(self._place)
                try:
                    database.be_there(connection, self._server)
                    connection.raw_execute(f'LISTEN "{self._quoted}"')
                    self.listens = True
                    self._hand_over([])  # what was said before
                    connection.execute("SELECT pg_notify(?, '[]')", (self._channel,))
                    is_heard = False  # what it has just told itself
                    while not self._ends:
                        if (ahead_ms := connection.clock_ahead_ms()) is not None:
                            self._measured(ahead_ms)
                        self._mark()
                        for process, payload in connection.notifications(LOOK_SECONDS):
                            is_heard = is_heard or process == connection.process_id
                            if process == self._own_process and payload == MARK:
                                self._note_mark()
                            elif process not in (self._own_process, connection.process_id):
                                self._hear(payload)
                        if not is_heard and not self._has_warned:
                            self._has_warned = True
                            log.warning(
                                "Notifications of %s do not arrive, so what happens at one server is noticed at "
                                "another up to a second later. A pooler in transaction mode hands none on: name "
                                "PostgreSQL itself in the URL.",
                                self._place,
                            )
                finally:
                    connection.close()
            except psycopg.Error:
                time.sleep(AGAIN_SECONDS)

    def _mark(self) -> None:
        now = time.monotonic()
        if self._marked is None or now - self._marked_last > MARK_AGAIN_SECONDS:
            self._marked_last = now
            self._marked = self._marked or now
            self._untold.append(None)
            self._something.set()

    def _note_mark(self) -> None:
        if self._marked is not None:
            self._lag_seconds, self._marked = time.monotonic() - self._marked, None

    def _hear(self, payload: str) -> None:
        """What no server can have said is of another program, and not for us."""
        with suppress(ValueError):
            if isinstance(words := json.loads(payload), list):
                self._hand_over(words)

    def _hand_over(self, words: Sequence[list[Any]]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._heard, words)

    def _tell(self) -> None:
        connection = None
        while True:
            self._something.wait()
            self._something.clear()
            while self._untold and not self._ends:
                try:
                    if connection is None:
                        connection = Connection(self._place)
                        connection.raw_execute("SET synchronous_commit = off")
                        self._own_process = connection.process_id
                    connection.execute("SELECT pg_notify(?, ?)", (self._channel, self._next_message()))
                except psycopg.Error:  # the words of this message are lost, and looked for by those who wait
                    if connection is not None:
                        connection.close()
                    connection = None
                    time.sleep(AGAIN_SECONDS)
            if self._ends:
                if connection is not None:
                    connection.close()
                return

    def _next_message(self) -> str:
        parts: list[str] = []
        room = MESSAGE_BYTES
        while self._untold:
            if self._untold[0] is None:
                if parts:
                    break
                self._untold.popleft()
                return MARK
            part = json.dumps(self._untold[0], ensure_ascii=False, separators=(",", ":"))
            size = len(part.encode()) + 1
            if size > room and parts:
                break
            self._untold.popleft()
            if size <= room:  # else it is too long to be told at all
                parts.append(part)
                room -= size
        return f"[{','.join(parts)}]"

    @property
    def _quoted(self) -> str:
        return self._channel.replace('"', '""')
