"""A client's calls on one stream: a question and an answer each, several of them in one message.

A call of gRPC's own takes both ends more time than all that Nexum does for it. Here it is two messages in a batch, a
header and what `Execute` takes or returns:

    CompleteRequest  task_id: the number of the call; output_json: what goes as metadata elsewhere, as a JSON object,
                     or "" for a call that is over for the client
    StartRequest     as `Execute` has it; with `nexum-completes` its input_json is the output of that task

    PollResponse     task_id: the same number; input_json: what comes as trailing metadata elsewhere, as a JSON object,
                     or why it is refused; node_type: the status code then
    StatusResponse

A call that gets the task which it claims goes on after its answer, until it is over for the client, or its stream is:
then the server gives up what has not been completed. A second answer, with `nexum-stop`, says that it is to stop.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.client.way import Claim, Metadata
from nexum_runtime.wire import batches

LET_GO_SECONDS = 1.0


class Refused(Exception):
    """The server's answer is a status code, and why."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Broken(Exception):
    """The stream has ended before the answer came: nothing is known of the call."""


class Calls:
    """Opens its stream by `open_stream()` when a call is made and none is open. Belongs to one event loop."""

    def __init__(self, open_stream: Callable[[], Any]) -> None:
        self._open_stream = open_stream
        self._stream: Any = None
        self._ended: asyncio.Future[None] | None = None  # done when that stream has
        self._numbers = count(1)
        self._answers: dict[str, asyncio.Future[tuple[Any, dict[str, Any]]]] = {}  # by the number of the call
        self._claims: dict[str, Claim] = {}  # likewise, of those that have got their task
        self._waiting: deque[list[Any]] = deque()  # messages that are to be sent
        self._writing: asyncio.Task[None] | None = None
        self._last_writing: asyncio.Task[None] | None = None  # of any stream
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, request: Any, metadata: Metadata, seconds: float) -> tuple[Any, dict[str, Any], Claim | None]:
        """The answer, its metadata, and the claim if there is one.

        Raises Refused, Broken, TimeoutError, or AioRpcError when the stream fails.
        """
        number = str(next(self._numbers))
        loop = asyncio.get_running_loop()
        answer = self._answers[number] = loop.create_future()
        self._send(number, json.dumps(dict(metadata)), request)
        lost, timer = self._ended, loop.call_later(seconds, _fail, answer, TimeoutError())
        assert lost is not None, "a stream is open"
        try:
            response, told = await answer
        except (asyncio.CancelledError, TimeoutError):
            self._leave(number, lost)
            raise
        finally:
            timer.cancel()
            del self._answers[number], answer  # what it may have raised refers to this frame: see `_end`
        if wire.TASK_ID not in told:
            return response, told, None
        claim = self._claims[number] = Claim(partial(self._leave, number, lost), lost)
        return response, told, claim

    def close(self) -> None:
        self._end(Broken("The client was closed."))

    async def closed(self) -> None:
        """Return when gRPC has let go of what was being written: an event loop that ends before that keeps the
        connection open. The stream was cancelled or its channel closed, and it does so at once, but for a busy machine.
        """
        if self._last_writing is not None and not self._last_writing.done():
            await asyncio.wait([self._last_writing], timeout=LET_GO_SECONDS)
        self._last_writing = None

    def _leave(self, number: str, ended: "asyncio.Future[None]") -> None:
        self._claims.pop(number, None)
        if not ended.done():
            self._send(number, "", pb.StartRequest())

    def _send(self, number: str, header: str, request: Any) -> None:
        if self._stream is None:
            self._stream, self._ended = self._open_stream(), asyncio.get_running_loop().create_future()
            self._reading = asyncio.create_task(self._read(self._stream))
            # It reads for as long as the process makes calls: nobody is to be told that it was still there at the end.
            setattr(self._reading, "_log_destroy_pending", False)  # noqa: B010
        self._waiting.append([pb.CompleteRequest(task_id=number, output_json=header), request])
        if self._writing is None or self._writing.done():
            self._writing = self._last_writing = asyncio.create_task(self._write(self._stream))

    async def _write(self, stream: Any) -> None:
        """Whoever reads the stream is told why it cannot be written to.

        That this was cancelled is kept for nobody: the error would refer to the stream, and hold its connection.
        """
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while self._waiting and stream is self._stream:
                await stream.write(batches.pack(batches.take(self._waiting)))

    async def _read(self, stream: Any) -> None:
        error: Exception = Broken("The server has ended the stream.")
        try:
            # Not by iterating: an asynchronous generator would be closed at the end of the SDK's `run_sync`.
            while (data := await stream.read()) is not grpc.aio.EOF:
                messages = batches.unpack((pb.PollResponse, pb.StatusResponse), data)
                for header, response in zip(messages[::2], messages[1::2], strict=True):
                    self._settle(header, response)
        except grpc.aio.AioRpcError as failure:
            error = failure
        except asyncio.CancelledError:
            pass  # the loop ends; the task would keep the error, and with it the frames that refer to the connection
        finally:
            if stream is self._stream:
                self._end(error)
            del error  # it may refer to this frame

    def _settle(self, header: Any, response: Any) -> None:
        if (claim := self._claims.get(header.task_id)) is not None and not claim.stopped.done():
            claim.stopped.set_result(json.loads(header.input_json).get(wire.STOP, ""))
            return
        answer = self._answers.get(header.task_id)
        if answer is None or answer.done():  # whoever asked has left
            return
        if header.node_type:
            answer.set_exception(Refused(grpc.StatusCode[header.node_type], header.input_json))
            return
        told = json.loads(header.input_json)
        if wire.ERROR in told:
            told[wire.ERROR] = told[wire.ERROR].encode()
        answer.set_result((response, told))

    def _end(self, error: Exception) -> None:
        # gRPC holds on to a connection for as long as there is a call: in a cycle, until the next garbage collection.
        stream, self._stream, self._writing, self._reading = self._stream, None, None, None
        self._waiting.clear()
        self._claims.clear()
        if stream is not None:
            stream.cancel()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        for answer in self._answers.values():
            _fail(answer, error)


def _fail(answer: "asyncio.Future[Any]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
