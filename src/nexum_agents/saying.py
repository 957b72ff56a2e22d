"""What a model says, told to who follows the session while it says it. It matters to nobody else: see `Saying.say`."""

import asyncio
from contextlib import suppress
from typing import Final

from nexum_agents.clients import nexum_client

GATHER_SECONDS = 0.05  # words that come within this are told together
WAITING_CHARS = 64 * 1024  # kept while the server is slow; of more, the first ones are left out

DELTA: Final = "response.output_text.delta"  # the type of an event


class Saying:
    """The words of one answer, in one event loop."""

    def __init__(self, execution_id: str, attempt: int) -> None:
        self._execution_id, self._attempt = execution_id, attempt
        self._at = 0  # characters told, or left out
        self._waiting = ""
        self._telling: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        """Returns at once, and raises nothing. Words that do not arrive are missed by followers alone."""
        self._waiting += text
        if (over := len(self._waiting) - WAITING_CHARS) > 0:
            self._at, self._waiting = self._at + over, self._waiting[over:]
        if self._waiting and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell())

    def end(self) -> None:
        """The answer is recorded, or given up."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            at, text, self._waiting = self._at, self._waiting, ""
            self._at += len(text)
            with suppress(Exception):
                await nexum_client().publish_words(self._execution_id, self._attempt, at, text)
