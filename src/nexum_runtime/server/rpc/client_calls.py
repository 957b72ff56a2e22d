"""What a client calls to have an execution run to its end: `Execute`, once, or many times on one stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.logs import Log
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.methods.methods import Call, LetOut
from nexum_runtime.server.methods.orders import (
    Fields,
    Trailing,
    labels_of,
    start_order,
    status_fields,
    told_of,
    traced,
    whole_number,
)
from nexum_runtime.server.model.shapes import Claimed
from nexum_runtime.server.rpc.messages import CODES, DETAILS_LIMIT, TOLD, Context, abort, check_memory, details
from nexum_runtime.server.rpc.outbox import Answer, Answers
from nexum_runtime.server.rpc.peers import Recording, Waiting
from nexum_runtime.server.rpc.traffic import Traffic, client_of
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.text import error_text
from nexum_runtime.wire import batches

log = Log("nexum.service")


HEADER_CHARS_LIMIT = 64 * 1024  # of one call


class _Calls:
    """The calls of one client's stream that are under way, by their numbers."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.recording = Recording()
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self.answered: set[str] = set()  # whose answers are on their way

    def end(self, number: str, answers: Answers, job: "asyncio.Task[None]") -> None:
        del self.jobs[number]
        self.answered.discard(number)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("%s: %s", type(error).__name__, error, exc_info=error)
            answers.refuse(number, grpc.StatusCode.INTERNAL.name, error_text(error)[:DETAILS_LIMIT])
        answers.wake()


class ClientCalls:
    """The methods of `nexum.NexumExtensions` that start executions."""

    def __init__(self, engine: Engine, waiting: Waiting, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic
        self._waiting = waiting

    async def Execute(self, request: Any, call: Call) -> Fields:
        """Start idempotently and wait for the end, or for the task that it claims, in one round trip."""
        assert call.let_out is not None
        fields, call.trailing, claimed = await self._execute(call.let_out, request, call.metadata)
        if claimed is not None:
            call.unsent = partial(self._engine.give_back, claimed)
        return fields

    async def _execute(
        self, let_out: LetOut, request: Any, metadata: dict[str, Any]
    ) -> tuple[Fields, Trailing, Claimed | None]:
        wait_ms = whole_number(metadata, wire.WAIT_MS, wire.WAIT_MS_LIMIT, 0, wire.WAIT_MS_LIMIT)
        with traced("Execute", start_order(request, metadata)) as (span, order):
            started, found = await self._engine.execute(order, wait_ms, lazily=True)
            letting_out = self._let_out(let_out, found)
            del found  # which may have to be let go of
            snapshot = await letting_out
            span.tell(before=started.before, outcome=snapshot.execution.status)
        return status_fields(snapshot), told_of(started, snapshot), started.claimed

    async def _let_out(self, let_out: LetOut, snapshot: Snapshot) -> Snapshot:
        execution_id = snapshot.execution.execution_id
        return await let_out(snapshot, lambda: self._engine.snapshot(execution_id))

    async def StreamCalls(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """A client's one long call: each of its calls is an `Execute`, see `calls`."""
        answers, calls = Answers(context, self._traffic), _Calls(client_of(context.peer()))
        receiving = asyncio.create_task(self._receive_calls(requests, calls, answers))
        closing = asyncio.create_task(self._engine.closing.wait())
        for end in (receiving, closing):
            end.add_done_callback(lambda _: answers.wake())
        try:
            await answers.send(lambda: (receiving.done() or closing.done()) and not calls.jobs)
            check_memory(receiving)
        except TOLD as error:
            await abort(context, error)
        finally:
            for job in (receiving, closing, *calls.jobs.values()):
                job.cancel()
            answers.drop()

    async def _receive_calls(self, requests: AsyncIterator[bytes], calls: "_Calls", answers: Answers) -> None:
        async for data in requests:
            try:
                messages = batches.unpack((pb.CompleteRequest, pb.StartRequest), data)
            except ValueError as error:
                answers.refuse("", grpc.StatusCode.INVALID_ARGUMENT.name, f"That is no batch of calls: {error}.")
                continue
            for header, request in zip(messages[::2], messages[1::2], strict=True):
                number = header.task_id
                await answers.has_room()
                if not header.output_json:
                    if number in calls.jobs and number not in calls.answered:
                        calls.jobs[number].cancel()
                elif number in calls.jobs:
                    answers.refuse(number, grpc.StatusCode.INVALID_ARGUMENT.name, f"Call {number[:20]} is under way.")
                else:
                    try:
                        metadata = _metadata_of_call(header.output_json)
                    except InvalidRequest as error:
                        answers.refuse(number, grpc.StatusCode.INVALID_ARGUMENT.name, details(error))
                        continue
                    job = asyncio.create_task(self._answer_call(number, request, metadata, calls, answers))
                    job.add_done_callback(partial(calls.end, number, answers))
                    calls.jobs[number] = job
                    if wire.COMPLETES in metadata:
                        await calls.recording.add(job, request.ByteSize())

    async def _answer_call(
        self, number: str, request: Any, metadata: dict[str, str], calls: "_Calls", answers: Answers
    ) -> None:
        answer = Answer(number)
        let_out = partial(self._traffic.let_out, answer, calls.client)
        try:
            if wire.COMPLETES in metadata:  # it has a place: that of its claim
                message = await self._engine.complete(metadata[wire.COMPLETES], request.input_json, labels_of(metadata))
                response, told = pb.StatusResponse(), {wire.MESSAGE: message}
            else:
                with self._waiting.place(calls.client, request):
                    if wire.CLAIM in metadata:
                        await self._answer_claim(answer, let_out, request, metadata, answers)
                        return
                    fields, trailing, _ = await self._execute(let_out, request, metadata)
                response, told = _response(fields), _as_texts(trailing)
        except TOLD as error:
            answers.refuse(number, CODES[type(error)].name, details(error))
        except asyncio.CancelledError:
            self._traffic.sent(answer)
            raise
        else:
            calls.answered.add(number)
            await answers.answer(answer, told, response)

    async def _answer_claim(
        self, answer: Answer, let_out: LetOut, request: Any, metadata: dict[str, str], answers: Answers
    ) -> None:
        """Goes on, when it gets the task, until it is cancelled."""
        wait_ms = whole_number(metadata, wire.WAIT_MS, wire.WAIT_MS_LIMIT, 0, wire.WAIT_MS_LIMIT)
        with ExitStack() as asking:
            span, order = asking.enter_context(traced("Execute", start_order(request, metadata)))
            async with aclosing(self._engine.execute_here(order, wait_ms)) as executing:
                async for started, found in executing:
                    letting_out = self._let_out(let_out, found)
                    del found
                    snapshot = await letting_out
                    span.tell(before=started.before, outcome=snapshot.execution.status)
                    asking.close()  # from here on it is only present
                    answers.put(answer, _as_texts(told_of(started, snapshot)), _response(status_fields(snapshot)))
                    del snapshot
                    if started.claimed is not None:
                        tell = self._engine.telling_to_stop(
                            started.claimed.task.task_id,
                            lambda why: answers.put(Answer(answer.number), {wire.STOP: why}, pb.StatusResponse()),
                        )
                        asking.enter_context(tell)


def _metadata_of_call(text: str) -> dict[str, str]:
    if len(text) > HEADER_CHARS_LIMIT:
        raise InvalidRequest(f"The header of the call has {len(text)} characters; the limit is {HEADER_CHARS_LIMIT}.")
    try:
        metadata = wire.parse_json(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidRequest(f"The header {text[:80]!r} of the call is no JSON object of texts.")
    return metadata


def _as_texts(metadata: Trailing) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value.decode() for key, value in metadata}


def _response(fields: Fields) -> Any:
    return pb.StatusResponse(**fields)
