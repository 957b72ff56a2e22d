"""The way to an engine in another process, by gRPC."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import forking, wire
from nexum_runtime.client.calls import Broken, Calls, Refused
from nexum_runtime.client.connection import Connection
from nexum_runtime.client.outgoing import Completion, Outgoing, StreamEnded
from nexum_runtime.client.way import RPC_SECONDS, Claim, Fields, Metadata, Told
from nexum_runtime.errors import ServerUnavailable
from nexum_runtime.wire import batches
from nexum_runtime.wire.methods import STREAMS, path_of, types_of


class Remote:
    """A `Way` to the server at `address`. `token`, `tls_ca` and `is_near` are as `Connection` has them."""

    def __init__(
        self, address: str, token: str | None = None, tls_ca: Path | None = None, *, is_near: bool = False
    ) -> None:
        self.where = address
        self.connection = server = Connection(address, token, tls_ca, is_near=is_near)
        self._methods: dict[str, Any] = {}
        self._stream_tasks = server.channel.stream_stream(path_of("StreamTasks"))
        stream_calls = server.channel.stream_stream(path_of("StreamCalls"))  # bytes: see `calls`
        self.calls = Calls(lambda: stream_calls(metadata=server.metadata({})))
        self._has_calls = True  # as far as is known
        forking.opened(self)

    async def close(self) -> None:
        if not forking.is_unusable():  # else what there is belongs to the parent
            forking.closed(self)
            self.calls.close()
            await self.connection.close()
            await self.calls.closed()

    def method(self, name: str) -> Any:
        """As gRPC calls it."""
        if name not in self._methods:
            channel, (request, response) = self.connection.channel, types_of(name)
            make = channel.unary_stream if name in STREAMS else channel.unary_unary
            self._methods[name] = make(path_of(name), request.SerializeToString, response.FromString)
        return self._methods[name]

    async def ask(
        self, method: str, fields: Fields, metadata: Metadata, seconds: float = RPC_SECONDS
    ) -> tuple[Any, Told]:
        request, _ = types_of(method)
        return await self.connection.call(self.method(method), request(**fields), metadata, seconds)

    def stream(
        self,
        method: str,
        fields: Fields,
        metadata: Metadata,
        patience: float | None,
        tell: Callable[[Told], None] | None = None,
    ) -> AsyncIterator[Any]:
        request, _ = types_of(method)
        return self.connection.stream(self.method(method), request(**fields), patience, metadata, tell)

    async def find(self, fields: Fields, metadata: Metadata, seconds: float) -> tuple[Any, Told, Claim | None]:
        asked = await self._ask_on_stream(pb.StartRequest(**fields), metadata, seconds)
        return asked or (*await self.ask("Execute", fields, metadata, seconds), None)

    async def complete(self, task_id: str, output_json: str, labels_json: str) -> str:
        metadata = {wire.COMPLETES: task_id} | ({wire.LABELS: labels_json} if labels_json else {})
        if asked := await self._ask_on_stream(pb.StartRequest(input_json=output_json), metadata, RPC_SECONDS):
            return str(asked[1][wire.MESSAGE])
        answer, _ = await self.ask("CompleteTask", {"task_id": task_id, "output_json": output_json}, {})
        return str(answer.message)

    async def _ask_on_stream(
        self, request: Any, metadata: Metadata, seconds: float
    ) -> tuple[Any, Told, Claim | None] | None:
        """A call on the stream of calls; None when the server knows none, being older."""
        forking.check()
        if not self._has_calls:
            return None
        try:
            return await self.calls.ask(request, metadata, seconds)
        except Refused as refusal:
            raise self.connection.error_of(refusal.code, str(refusal)) from None
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise self.connection.error(error) from None
            self._has_calls = False
            return None
        except Broken:
            raise ServerUnavailable(self.connection.unreachable("")) from None
        except TimeoutError:
            raise self.connection.silent(seconds) from None

    async def stream_tasks(self, metadata: Metadata, outgoing: Outgoing) -> AsyncGenerator[Any, None]:
        call = self._stream_tasks(metadata=self.connection.metadata({**metadata, wire.BATCHES: "true"}))
        sending = None
        try:
            in_batches = dict(await call.initial_metadata()).get(wire.BATCHES) == "true"
            sending = asyncio.create_task(_send(outgoing, call, in_batches))
            async for data in call:
                for answer in (
                    batches.unpack([pb.PollResponse], data) if in_batches else [pb.PollResponse.FromString(data)]
                ):
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise self.connection.error(error) from None
        finally:
            call.cancel()
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])


async def _send(outgoing: Outgoing, call: Any, in_batches: bool) -> None:
    async def send(waiting: deque[Completion]) -> None:
        if in_batches:
            data = batches.pack(batches.take(waiting, lambda each: [_request(each)]))
        else:
            data = _request(waiting.popleft()).SerializeToString()
        try:
            await call.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise StreamEnded from None

    async def end() -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.done_writing()

    await outgoing.run(send, end)


def _request(completion: Completion) -> Any:
    task_id, output_json = completion
    return pb.CompleteRequest(task_id=task_id, output_json=output_json)
