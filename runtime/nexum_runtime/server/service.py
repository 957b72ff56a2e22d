"""The gRPC services: messages in, engine calls, messages and status codes out."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import batches, tracing, wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NexumError, NotFound
from nexum_runtime.server.engine import Engine, Snapshot
from nexum_runtime.server.lifecycle import Resolution, Started, StartOrder, Verdict
from nexum_runtime.server.outbox import Answers, Outbox, task_response
from nexum_runtime.server.states import ExecutionStatus
from nexum_runtime.server.store.base import EventRow, StoreUnavailable
from nexum_runtime.server.streams import Stream
from nexum_runtime.text import MIB, size_text, timestamp

Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio ships no types
Trailing: TypeAlias = tuple[tuple[str, str | bytes], ...]
Answer = TypeVar("Answer")

LIST_LIMIT_DEFAULT, LIST_LIMIT = 20, 10_000
REGISTRATIONS_LIMIT = 20_000  # which connection has registered what: remembered, the latest ones
WARNINGS_LIMIT = 10_000  # connections that were warned of an ambiguous hash are remembered
HELD_LIMIT = 10_000  # tasks of one worker in one heartbeat
WAITING_LIMIT = 2_000  # calls of one client that are held until there is something to say …
WAITING_MIB_LIMIT = 256  # … and their requests, which stay in memory as long
COMPLETIONS_LIMIT = 1_000  # of one stream that are being recorded; more are not read yet
AGE_MS_LIMIT = 10**14  # of what is pruned: 3,000 years
DETAILS_LIMIT = 500  # characters of an error's text: it travels in a header, percent-encoded, of at most 8 KiB

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}

log = logging.getLogger("nexum.service")


@dataclass(frozen=True)
class Unreadable:
    """A request whose bytes are not the message that its method takes."""

    reason: str


def _answering(
    method: Callable[[Any, Any, Context], Awaitable[Answer]],
) -> Callable[[Any, Any, Context], Awaitable[Answer]]:
    """Turn the engine's errors into status codes."""

    @wraps(method)
    async def answer(self: Any, request: Any, context: Context) -> Answer:
        try:
            return await method(self, _readable(request), context)
        except (NexumError, StoreUnavailable) as error:
            await _abort(context, error)
            raise AssertionError("abort raises") from None

    return answer


def _readable(request: Any) -> Any:
    if isinstance(request, Unreadable):
        raise InvalidRequest(request.reason)
    return request


async def _abort(context: Context, error: Exception) -> None:
    await context.abort(CODES[type(error)], _details(error))


def _details(error: Exception) -> str:
    return str(error)[:DETAILS_LIMIT].encode(errors="replace").decode()


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers UNAUTHENTICATED, whatever the method and before reading the request, to a call without the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(self, proceed: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        given = [value for key, value in call.invocation_metadata if key == wire.AUTHORIZATION]
        if len(given) == 1 and wire.bears(given[0], self._token):
            return await proceed(call)
        got = "another one" if given else "none"

        async def refuse(_: Any, context: Context) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                f"This Nexum server demands a token and got {got}: set NEXUM_TOKEN to the one it was started with.",
            )

        return grpc.stream_stream_rpc_method_handler(refuse)  # every kind of call is a case of this one


class Waiting:
    """The calls that are held, by client: a bound on what one of them can make the server remember."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()  # by peer
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def place(self, context: Context, request: Any) -> Iterator[None]:
        peer, size_bytes = context.peer(), request.ByteSize()
        self.enter(peer, size_bytes)
        try:
            yield
        finally:
            self.leave(peer, size_bytes)

    def enter(self, peer: str, size_bytes: int) -> None:
        """Raises LimitExceeded when there is no place left."""
        if self._calls[peer] >= WAITING_LIMIT:
            raise LimitExceeded(f"This client has {WAITING_LIMIT} calls waiting already; let some of them end first.")
        if self._calls[peer] and self._bytes[peer] + size_bytes > WAITING_MIB_LIMIT * MIB:
            raise LimitExceeded(
                f"This client has calls of {size_text(self._bytes[peer])} waiting already, and one more of "
                f"{size_text(size_bytes)} is over the limit of {WAITING_MIB_LIMIT} MiB; let some of them end first."
            )
        self._calls[peer] += 1
        self._bytes[peer] += size_bytes

    def leave(self, peer: str, size_bytes: int) -> None:
        self._calls[peer] -= 1
        self._bytes[peer] -= size_bytes
        if not self._calls[peer]:
            del self._calls[peer], self._bytes[peer]


class Registrations:
    """Which connection has registered which workflows: whose tasks it asks for when it names only a hash."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registered: OrderedDict[tuple[str, str, str], None] = OrderedDict()  # (peer, workflow, hash)
        self._warned: set[tuple[str, str]] = set()  # (peer, hash): said once, though it polls ten times a second

    def add(self, peer: str, workflow_id: str, version_hash: str) -> None:
        registered = (peer, workflow_id, version_hash)
        self._registered[registered] = None
        self._registered.move_to_end(registered)
        if len(self._registered) > REGISTRATIONS_LIMIT:
            self._registered.popitem(last=False)

    async def served(self, peer: str, version_hash: str) -> list[str]:
        """Whose tasks are asked for by a hash alone, which several workflows may share."""
        candidates = await self._engine.workflow_ids(version_hash)
        own = [candidate for candidate in candidates if (peer, candidate, version_hash) in self._registered]
        if not own and len(candidates) > 1 and (peer, version_hash) not in self._warned:
            if len(self._warned) >= WARNINGS_LIMIT:
                self._warned.clear()
            self._warned.add((peer, version_hash))
            log.warning(
                "%s asks for tasks of %s, which the workflows %s share, and has registered none of them; "
                "it may get a task of any.",
                peer,
                version_hash,
                ", ".join(candidates),
            )
        return own or candidates


class _Calls:
    """The calls of one client's stream that are under way, by their numbers."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self.answered: set[str] = set()  # whose answers are on their way

    def end(self, number: str, answers: Answers, job: "asyncio.Task[None]") -> None:
        del self.jobs[number]
        self.answered.discard(number)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("%s: %s", type(error).__name__, error, exc_info=error)
            answers.refuse(number, grpc.StatusCode.INTERNAL.name, f"{type(error).__name__}: {error}"[:DETAILS_LIMIT])
        answers.wake()


class NexumService:
    """`nexum.NexumService`, as nexum-py 0.2.0 has it."""

    def __init__(self, engine: Engine, waiting: Waiting, registrations: Registrations) -> None:
        self._engine = engine
        self._waiting = waiting
        self._registrations = registrations

    @_answering
    async def RegisterWorkflow(self, request: Any, context: Context) -> Any:
        compatibility = await self._engine.register(request.workflow_id, request.version_hash, request.ir_json)
        self._registrations.add(context.peer(), request.workflow_id, request.version_hash)
        context.set_trailing_metadata(((wire.MAX_MESSAGE_BYTES, str(self._engine.max_message_bytes)),))
        return pb.AckResponse(ok=True, compatibility=compatibility)

    @_answering
    async def StartExecution(self, request: Any, context: Context) -> Any:
        order = _start_order(request, _metadata(context))
        with _traced("StartExecution", order) as (span, order):
            started = await self._engine.start(order)
            span.tell(before=started.before)
        context.set_trailing_metadata(_started_metadata(started))
        return pb.StartResponse(execution_id=started.execution_id)

    @_answering
    async def PollTask(self, request: Any, context: Context) -> Any:
        metadata = _metadata(context)
        named = metadata.get(wire.WORKFLOW_ID)
        with self._waiting.place(context, request):
            claimed = await self._engine.poll(
                request.worker_id,
                request.version_hash,
                [named] if named else await self._registrations.served(context.peer(), request.version_hash),
                _lease_ms(metadata),
                _number(metadata, wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT),
            )
        if claimed is None:
            return pb.PollResponse(has_task=False)
        crash_point("claim-committed")
        return task_response(claimed)

    @_answering
    async def CompleteTask(self, request: Any, context: Context) -> Any:
        message = await self._engine.complete(request.task_id, request.output_json)
        return pb.AckResponse(ok=True, message=message)

    @_answering
    async def FailTask(self, request: Any, context: Context) -> Any:
        metadata = _metadata(context)
        message = await self._engine.fail(
            request.task_id,
            request.error_message,
            retryable=metadata.get(wire.RETRYABLE) != "false",
            interrupted=metadata.get(wire.INTERRUPTED) == "true",
            unknown=metadata.get(wire.UNKNOWN) == "true",
            begun=metadata.get(wire.BEGUN) != "false",
        )
        return pb.AckResponse(ok=True, message=message)

    @_answering
    async def GetStatus(self, request: Any, context: Context) -> Any:
        wait_ms = _number(_metadata(context), wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT)
        with self._waiting.place(context, request):
            snapshot = await self._engine.snapshot(request.execution_id, wait_ms)
        context.set_trailing_metadata(_outcome_metadata(snapshot))
        return _status_response(snapshot)

    @_answering
    async def ListExecutions(self, request: Any, context: Context) -> Any:
        if request.status and request.status not in set(ExecutionStatus):
            raise InvalidRequest(f"{request.status[:40]!r} is not the status of an execution.")
        executions = await self._engine.executions(
            request.workflow_id,
            request.status,
            _metadata(context).get(wire.PREFIX, ""),
            min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT_DEFAULT,
        )
        return pb.ListResponse(
            executions=[
                pb.ExecutionSummary(
                    execution_id=execution.execution_id,
                    workflow_id=execution.workflow_id,
                    version_hash=execution.version_hash,
                    status=execution.status,
                    created_at=timestamp(execution.created_at_ms),
                )
                for execution in executions
            ]
        )

    @_answering
    async def CancelExecution(self, request: Any, context: Context) -> Any:
        return pb.AckResponse(ok=True, message=await self._engine.cancel(request.execution_id))

    @_answering
    async def ListWorkflowVersions(self, request: Any, context: Context) -> Any:
        return pb.ListVersionsResponse(
            versions=[
                pb.VersionInfo(
                    workflow_id=version.workflow_id,
                    version_hash=version.version_hash,
                    compatibility=version.compatibility,
                    registered_at=timestamp(version.registered_at_ms),
                    active_executions=version.active_executions,
                )
                for version in await self._engine.versions(request.workflow_id)
            ]
        )

    @_answering
    async def ApproveTask(self, request: Any, context: Context) -> Any:
        yes = Verdict(True, request.approver, request.comment)
        return pb.AckResponse(ok=True, message=await self._engine.answer(request.execution_id, request.node_id, yes))

    @_answering
    async def RejectTask(self, request: Any, context: Context) -> Any:
        no = Verdict(False, request.approver, request.reason)
        return pb.AckResponse(ok=True, message=await self._engine.answer(request.execution_id, request.node_id, no))

    @_answering
    async def GetPendingApprovals(self, request: Any, context: Context) -> Any:
        return pb.PendingApprovalsResponse(
            items=[
                pb.PendingApprovalItem(
                    execution_id=approval.execution_id,
                    node_id=approval.node_id,
                    workflow_id=approval.workflow_id,
                    started_at=timestamp(approval.since_ms),
                )
                for approval in await self._engine.approvals(LIST_LIMIT)
            ]
        )

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            wire.SERVICE,
            {
                "RegisterWorkflow": _unary(self.RegisterWorkflow, pb.WorkflowIR, pb.AckResponse),
                "StartExecution": _unary(self.StartExecution, pb.StartRequest, pb.StartResponse),
                "PollTask": _unary(self.PollTask, pb.PollRequest, pb.PollResponse),
                "CompleteTask": _unary(self.CompleteTask, pb.CompleteRequest, pb.AckResponse),
                "FailTask": _unary(self.FailTask, pb.FailRequest, pb.AckResponse),
                "GetStatus": _unary(self.GetStatus, pb.StatusRequest, pb.StatusResponse),
                "ListExecutions": _unary(self.ListExecutions, pb.ListRequest, pb.ListResponse),
                "CancelExecution": _unary(self.CancelExecution, pb.CancelRequest, pb.AckResponse),
                "ListWorkflowVersions": _unary(
                    self.ListWorkflowVersions, pb.ListVersionsRequest, pb.ListVersionsResponse
                ),
                "ApproveTask": _unary(self.ApproveTask, pb.ApproveRequest, pb.AckResponse),
                "RejectTask": _unary(self.RejectTask, pb.RejectRequest, pb.AckResponse),
                "GetPendingApprovals": _unary(self.GetPendingApprovals, pb.EmptyRequest, pb.PendingApprovalsResponse),
            },
        )


class NexumExtensions:
    """`nexum.NexumExtensions`: what the stock service lacks, made of the same messages."""

    def __init__(self, engine: Engine, waiting: Waiting, registrations: Registrations) -> None:
        self._engine = engine
        self._waiting = waiting
        self._registrations = registrations

    @_answering
    async def Execute(self, request: Any, context: Context) -> Any:
        """Start idempotently and wait for the end, or for the task that it claims, in one round trip."""
        with self._waiting.place(context, request):
            response, metadata = await self._execute(request, _metadata(context))
        context.set_trailing_metadata(metadata)
        return response

    async def _execute(self, request: Any, metadata: dict[str, Any]) -> tuple[Any, Trailing]:
        wait_ms = _number(metadata, wire.WAIT_MS, wire.WAIT_MS_LIMIT, 0, wire.WAIT_MS_LIMIT)
        with _traced("Execute", _start_order(request, metadata)) as (span, order):
            started, snapshot = await self._engine.execute(order, wait_ms)
            span.tell(before=started.before, outcome=snapshot.execution.status)
        return _status_response(snapshot), _trailing(started, snapshot)

    async def StreamCalls(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """A client's one long call: each of its calls is an `Execute`, see `calls`."""
        answers, calls = Answers(context), _Calls(context.peer())
        receiving = asyncio.create_task(self._receive_calls(requests, calls, answers))
        closing = asyncio.create_task(self._engine.closing.wait())
        for end in (receiving, closing):
            end.add_done_callback(lambda _: answers.wake())
        try:
            await answers.send(lambda: (receiving.done() or closing.done()) and not calls.jobs)
        finally:
            for job in (receiving, closing, *calls.jobs.values()):
                job.cancel()

    async def _receive_calls(self, requests: AsyncIterator[bytes], calls: "_Calls", answers: Answers) -> None:
        async for data in requests:
            try:
                messages = batches.unpack((pb.CompleteRequest, pb.StartRequest), data)
            except ValueError as error:
                answers.refuse("", grpc.StatusCode.INVALID_ARGUMENT.name, f"That is no batch of calls: {error}.")
                continue
            for header, request in zip(messages[::2], messages[1::2], strict=True):
                number = header.task_id
                if not header.output_json:
                    if number in calls.jobs and number not in calls.answered:
                        calls.jobs[number].cancel()
                elif number in calls.jobs:
                    answers.refuse(number, grpc.StatusCode.INVALID_ARGUMENT.name, f"Call {number[:20]} is under way.")
                else:
                    job = asyncio.create_task(self._answer_call(header, request, calls, answers))
                    job.add_done_callback(partial(calls.end, number, answers))
                    calls.jobs[number] = job

    async def _answer_call(self, header: Any, request: Any, calls: "_Calls", answers: Answers) -> None:
        number, size_bytes = header.task_id, request.ByteSize()
        try:
            self._waiting.enter(calls.peer, size_bytes)
            try:
                metadata = _metadata_of_call(header.output_json)
                if wire.CLAIM in metadata:
                    await self._answer_claim(number, request, metadata, answers)
                    return
                if wire.COMPLETES in metadata:
                    message = await self._engine.complete(metadata[wire.COMPLETES], request.input_json)
                    response, told = pb.StatusResponse(), {wire.MESSAGE: message}
                else:
                    response, trailing = await self._execute(request, metadata)
                    told = _as_texts(trailing)
            finally:
                self._waiting.leave(calls.peer, size_bytes)
        except (NexumError, StoreUnavailable) as error:
            answers.refuse(number, CODES[type(error)].name, _details(error))
        else:
            calls.answered.add(number)
            await answers.answer(number, told, response)

    async def _answer_claim(self, number: str, request: Any, metadata: dict[str, str], answers: Answers) -> None:
        """Goes on, when it gets the task, until it is cancelled."""
        wait_ms = _number(metadata, wire.WAIT_MS, wire.WAIT_MS_LIMIT, 0, wire.WAIT_MS_LIMIT)
        with ExitStack() as asking:
            span, order = asking.enter_context(_traced("Execute", _start_order(request, metadata)))
            async with aclosing(self._engine.execute_here(order, wait_ms)) as executing:
                async for started, snapshot in executing:
                    span.tell(before=started.before, outcome=snapshot.execution.status)
                    asking.close()  # from here on it is only present
                    answers.put(number, _as_texts(_trailing(started, snapshot)), _status_response(snapshot))

    @_answering
    async def Heartbeat(self, request: Any, context: Context) -> Any:
        """Renew a worker's leases; `message` is a JSON list of the task ids it should stop.

        `version_hash` has no meaning of its own here: a worker may say in it, as a JSON list, which task ids it holds.
        """
        held = _task_ids(request.version_hash) if request.version_hash else None
        stops = await self._engine.heartbeat(request.worker_id, held)
        return pb.AckResponse(ok=True, message=wire.canonical_json(stops))

    async def StreamTasks(self, requests: AsyncIterator[Any], context: Context) -> None:
        """A worker's one long call: tasks go out as they become ready, completions come in and are acknowledged.

        A worker that sends no more is given nothing new; the call ends when what it has sent is committed.
        """
        try:
            metadata = _metadata(context)
            slots = _number(metadata, wire.SLOTS, 1, 1, wire.SLOTS_LIMIT)
            version_hash, named = metadata.get(wire.VERSION_HASH, ""), metadata.get(wire.WORKFLOW_ID)
            workflow_ids = [named] if named else await self._registrations.served(context.peer(), version_hash)
            in_batches = metadata.get(wire.BATCHES) == "true"
            with self._waiting.place(context, pb.EmptyRequest()):
                await context.send_initial_metadata(((wire.BATCHES, str(in_batches).lower()),))
                outbox = Outbox(in_batches)
                stream = await self._engine.open_stream(
                    metadata.get(wire.WORKER_ID, ""),
                    version_hash,
                    workflow_ids,
                    _lease_ms(metadata),
                    slots,
                    outbox.put_task,
                )
                completions = _completions(requests, in_batches)
                receiving = asyncio.create_task(self._receive(completions, stream, outbox))
                try:
                    await outbox.send(context, receiving, self._engine.closing)
                finally:
                    receiving.cancel()
                    await self._engine.close_stream(stream, outbox.take_back())
        except (NexumError, StoreUnavailable) as error:
            await _abort(context, error)

    async def _receive(self, completions: AsyncIterator[Any], stream: Stream, outbox: Outbox) -> None:
        """Record the completions that a worker sends, many at a time, and end its stream when it sends no more."""
        under_way: set[asyncio.Future[str]] = set()
        async for completion in completions:
            if isinstance(completion, Unreadable):  # whose it is cannot be told
                outbox.refuse("", grpc.StatusCode.INVALID_ARGUMENT.name, completion.reason)
                continue
            recording = self._engine.record(completion.task_id, completion.output_json)
            under_way.add(recording)
            recording.add_done_callback(under_way.discard)
            recording.add_done_callback(partial(_answer_completion, outbox, completion.task_id))
            if len(under_way) >= COMPLETIONS_LIMIT:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        await self._engine.close_stream(stream, outbox.take_back())
        if under_way:
            await asyncio.wait(under_way)

    async def Attend(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Held open by who executes tasks in its own process: the end of this call is its own end."""
        try:
            with self._waiting.place(context, _readable(request)):
                async with aclosing(self._engine.attend(request.worker_id)) as attending:
                    async for _ in attending:
                        yield pb.AckResponse(ok=True)
        except NexumError as error:
            await _abort(context, error)

    @_answering
    async def Resolve(self, request: Any, context: Context) -> Any:
        """A person's word on an unknown outcome: `reason` is the output's JSON text, or why it failed."""
        word = Resolution(_metadata(context).get(wire.RESOLUTION, ""), request.reason)
        return pb.AckResponse(ok=True, message=await self._engine.resolve(request.execution_id, request.node_id, word))

    @_answering
    async def Prune(self, request: Any, context: Context) -> Any:
        """Delete what ended long ago, under the prefix `execution_id`; `message` is `{"executions": …, "bytes": …}`."""
        metadata = _metadata(context)
        if wire.OLDER_THAN_MS not in metadata:
            raise InvalidRequest(f"Prune needs {wire.OLDER_THAN_MS}.")
        executions, size_bytes = await self._engine.prune(
            request.execution_id,
            _number(metadata, wire.OLDER_THAN_MS, 0, 0, AGE_MS_LIMIT),
            dry_run=metadata.get(wire.DRY_RUN) == "true",
        )
        return pb.AckResponse(ok=True, message=wire.canonical_json({"executions": executions, "bytes": size_bytes}))

    async def Journal(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """What every COMPLETED execution under a prefix has recorded, `{execution_id: {node: output}}`, in parts."""
        try:
            async with aclosing(self._engine.journal(_readable(request).execution_id)) as parts:
                async for part in parts:
                    yield pb.StatusResponse(status=ExecutionStatus.COMPLETED, completed_nodes_json=part)
        except (NexumError, StoreUnavailable) as error:
            await _abort(context, error)

    @_answering
    async def Inspect(self, request: Any, context: Context) -> Any:
        """What is wrong with this server, if anything: `completed_nodes_json` is what `Engine.inspect` tells."""
        return pb.StatusResponse(completed_nodes_json=wire.canonical_json(await self._engine.inspect()))

    @_answering
    async def Definition(self, request: Any, context: Context) -> Any:
        """One version of a workflow with its IR, the one registered last when `version_hash` is empty."""
        found = await self._engine.definition(request.workflow_id, request.version_hash)
        return pb.WorkflowIR(workflow_id=found.workflow_id, version_hash=found.version_hash, ir_json=found.ir_json)

    async def History(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """All that is known of one execution, or of every execution under a prefix that ends in "/"."""
        try:
            prefix = _readable(request).execution_id
            if prefix.endswith("/"):
                found = await self._engine.executions("", "", prefix, LIST_LIMIT)
                execution_ids = [execution.execution_id for execution in reversed(found)]
            else:
                execution_ids = [prefix]
            for execution_id in execution_ids:
                snapshot, events = await self._engine.history(execution_id)
                yield pb.StatusResponse(
                    status=snapshot.execution.status, completed_nodes_json=_history_json(snapshot, events)
                )
        except (NexumError, StoreUnavailable) as error:
            await _abort(context, error)

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            wire.EXTENSIONS,
            {
                "Execute": _unary(self.Execute, pb.StartRequest, pb.StatusResponse),
                "Heartbeat": _unary(self.Heartbeat, pb.PollRequest, pb.AckResponse),
                "Resolve": _unary(self.Resolve, pb.RejectRequest, pb.AckResponse),
                "Prune": _unary(self.Prune, pb.StatusRequest, pb.AckResponse),
                "StreamTasks": grpc.stream_stream_rpc_method_handler(
                    self.StreamTasks  # bytes: see `batches`
                ),
                "StreamCalls": grpc.stream_stream_rpc_method_handler(self.StreamCalls),  # bytes: see `calls`
                "Journal": grpc.unary_stream_rpc_method_handler(
                    self.Journal, _reader(pb.StatusRequest), pb.StatusResponse.SerializeToString
                ),
                "Inspect": _unary(self.Inspect, pb.StatusRequest, pb.StatusResponse),
                "Definition": _unary(self.Definition, pb.WorkflowIR, pb.WorkflowIR),
                "Attend": grpc.unary_stream_rpc_method_handler(
                    self.Attend, _reader(pb.PollRequest), pb.AckResponse.SerializeToString
                ),
                "History": grpc.unary_stream_rpc_method_handler(
                    self.History, _reader(pb.StatusRequest), pb.StatusResponse.SerializeToString
                ),
            },
        )


async def _completions(requests: AsyncIterator[bytes], in_batches: bool) -> AsyncIterator[Any]:
    read = _reader(pb.CompleteRequest)
    async for data in requests:
        try:
            completions = batches.unpack([pb.CompleteRequest], data) if in_batches else [read(data)]
        except ValueError as error:
            completions = [Unreadable(f"The request is no batch of CompleteRequests: {error}.")]
        for completion in completions:
            yield completion


def _answer_completion(outbox: Outbox, task_id: str, recording: "asyncio.Future[str]") -> None:
    if recording.cancelled():  # the server stops
        return
    error = recording.exception()
    if error is None:
        crash_point("completion-committed")
        outbox.acknowledge(task_id, recording.result())
    elif isinstance(error, (NexumError, StoreUnavailable)):
        outbox.refuse(task_id, CODES[type(error)].name, str(error))
    else:
        log.error("%s: %s", task_id, error, exc_info=error)


def _metadata_of_call(text: str) -> dict[str, str]:
    try:
        metadata = wire.parse_json(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidRequest(f"The header {text[:80]!r} of the call is no JSON object of texts.")
    return metadata


def _as_texts(metadata: Trailing) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value.decode() for key, value in metadata}


def _unary(method: Any, request: Any, response: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, _reader(request), response.SerializeToString)


def _reader(message: Any) -> Callable[[bytes], Any]:
    """Parse a request so that bytes which are none are answered like any other bad argument."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError as error:
            return Unreadable(f"The request is not a {message.DESCRIPTOR.name}: {error}.")

    return read


def _start_order(request: Any, metadata: dict[str, Any]) -> StartOrder:
    effect, traceparent = metadata.get(wire.EFFECT, wire.EFFECT_DEFAULT), metadata.get(wire.TRACEPARENT, "")
    attempts = 1 if effect == wire.ONCE else wire.ATTEMPTS_DEFAULT
    return StartOrder(
        workflow_id=request.workflow_id,
        version_hash=request.version_hash,
        input_json=request.input_json,
        execution_id=metadata.get(wire.EXECUTION_ID, ""),
        max_attempts=_number(metadata, wire.MAX_ATTEMPTS, attempts, 1, wire.ATTEMPTS_LIMIT),
        effect=effect,
        timeout_ms=_number(metadata, wire.TIMEOUT_MS, 0, 1, wire.TIMEOUT_MS_LIMIT) or None,
        restart=metadata.get(wire.RESTART, ""),
        claim=metadata.get(wire.CLAIM, ""),
        lease_ms=_lease_ms(metadata),
        traceparent=traceparent if wire.is_traceparent(traceparent) else "",
    )


@contextmanager
def _traced(method: str, order: StartOrder) -> Iterator[tuple[tracing.Span, StartOrder]]:
    """A span around a start, and the order as it goes on from there."""
    tracer = tracing.span("server", method, order.execution_id, parent=order.traceparent, workflow=order.workflow_id)
    with tracer as span:
        yield span, order._replace(traceparent=span.traceparent) if span.traceparent else order


def _task_ids(text: str) -> list[str]:
    try:
        task_ids = wire.parse_json(text)
    except ValueError:
        task_ids = None
    if not isinstance(task_ids, list) or not all(isinstance(each, str) and wire.is_text(each) for each in task_ids):
        raise InvalidRequest(f"The task ids {text[:80]!r} are not a JSON list of texts.")
    if len(task_ids) > HELD_LIMIT:
        raise InvalidRequest(f"A worker holds at most {HELD_LIMIT} tasks; this one names {len(task_ids)}.")
    return task_ids


def _metadata(context: Context) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())


def _number(metadata: dict[str, str], key: str, default: int, least: int, most: int) -> int:
    text = metadata.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise InvalidRequest(f"{key} is {text[:40]!r}; it must be a whole number from {least} to {most}.")
    return int(text)


def _lease_ms(metadata: dict[str, str]) -> int:
    return _number(metadata, wire.LEASE_MS, wire.LEASE_MS_DEFAULT, wire.LEASE_MS_MIN, wire.LEASE_MS_LIMIT)


def _started_metadata(started: Started) -> tuple[tuple[str, str], ...]:
    before = (wire.STATUS, started.before)
    return (before, (wire.TASK_ID, started.claimed.task.task_id)) if started.claimed else (before,)


def _trailing(started: Started, snapshot: Snapshot) -> Trailing:
    return (*_started_metadata(started), *_outcome_metadata(snapshot))


def _status_response(snapshot: Snapshot) -> Any:
    return pb.StatusResponse(status=snapshot.execution.status, completed_nodes_json=snapshot.outputs_json)


def _outcome_metadata(snapshot: Snapshot) -> Trailing:
    attempts = (wire.ATTEMPTS, str(snapshot.attempts))
    if snapshot.waits_for:
        return (attempts, (wire.WAITS_FOR, snapshot.waits_for))
    execution = snapshot.execution
    if execution.error is None or execution.error_code is None:
        return (attempts,)
    error = execution.error.encode()[: wire.ERROR_METADATA_BYTES].decode(errors="ignore").encode()
    return (attempts, (wire.ERROR, error), (wire.ERROR_CODE, execution.error_code))


def _history_json(snapshot: Snapshot, events: list[EventRow]) -> str:
    execution = snapshot.execution
    return wire.canonical_json(
        {
            "execution_id": execution.execution_id,
            "workflow_id": execution.workflow_id,
            "version_hash": execution.version_hash,
            "status": execution.status,
            "error": execution.error,
            "error_code": execution.error_code,
            "effect": execution.effect,
            "attempts": snapshot.attempts,
            "created_at_ms": execution.created_at_ms,
            "ended_at_ms": execution.ended_at_ms,
            "input": wire.parse_json(execution.input_json),
            "output_bytes": {node_id: len(text.encode()) for node_id, text in snapshot.outputs.items()},
            "events": [
                {"at_ms": e.at_ms, "type": e.type, "node_id": e.node_id, "attempt": e.attempt, **e.data} for e in events
            ],
        }
    )
