"""How a client reaches an engine: the methods of both services, wherever that engine is.

A method takes the fields of its request's message and metadata, as `wire` and docs/protocol.md have them, and
answers with whatever has the fields of its response's message, and with the trailing metadata.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from nexum_runtime.client.outgoing import Outgoing

RPC_SECONDS = 10.0  # for an answer that does not wait for anything

Fields: TypeAlias = Mapping[str, Any]
Metadata: TypeAlias = Mapping[str, str]
Told: TypeAlias = dict[str, Any]  # trailing metadata


class Claim:
    """A call that has got its task. `lost` is done when the engine sees us no more.

    `is_kept`: the engine knows by itself that we are here, and hears no heartbeats.
    """

    def __init__(self, leave: Callable[[], None], lost: "asyncio.Future[None]", *, is_kept: bool = False) -> None:
        self.leave, self.lost, self.is_kept = leave, lost, is_kept
        self.stopped: asyncio.Future[str] = lost.get_loop().create_future()  # done when it is to stop, with the reason


class Way(Protocol):
    """Belongs to one event loop. Its methods raise ServerUnavailable when no engine answers, or why it refuses."""

    @property
    def where(self) -> str:
        """Where it leads, as people are told."""
        ...

    async def ask(
        self, method: str, fields: Fields, metadata: Metadata, seconds: float = RPC_SECONDS
    ) -> tuple[Any, Told]:
        """One answer, within so many seconds."""
        ...

    def stream(
        self,
        method: str,
        fields: Fields,
        metadata: Metadata,
        patience: float | None,
        tell: Callable[[Told], None] | None = None,
    ) -> AsyncIterator[Any]:
        """Answers as they come, each within `patience` seconds. `tell` is told of the metadata before them."""
        ...

    async def find(self, fields: Fields, metadata: Metadata, seconds: float) -> tuple[Any, Told, Claim | None]:
        """An `Execute`: its answer, what was told of it, and the claim if it got the task that it claims."""
        ...

    async def complete(self, task_id: str, output_json: str, labels_json: str) -> str:
        """A `CompleteTask`: returns its message."""
        ...

    def stream_tasks(self, metadata: Metadata, outgoing: Outgoing) -> AsyncGenerator[Any, None]:
        """A worker's long call: what PollResponses have, as they come; `outgoing` is sent meanwhile."""
        ...

    async def close(self) -> None: ...
