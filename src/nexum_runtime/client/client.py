"""An asyncio client of a Nexum server."""

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from nexum_runtime import tracing, wire
from nexum_runtime.client import local
from nexum_runtime.client.local import Labels, LocalEffect, Patience
from nexum_runtime.client.outcome import OnWait, Outcome, Watcher
from nexum_runtime.client.outgoing import Outgoing
from nexum_runtime.client.way import RPC_SECONDS, Claim, Fields, Metadata, Way
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import (
    DatabaseUnavailable,
    ExecutionCancelled,
    ExecutionTimeout,
    LimitExceeded,
    NotFound,
    ServerUnavailable,
    TaskError,
)
from nexum_runtime.idempotency import idempotent_by, key_of
from nexum_runtime.text import error_text, redact

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 1.0  # between two tries to reach an engine that is away
FIRST_WAIT_MS, WAIT_MS = 1_500, 8_000  # of one Execute: short at first, so that `on_wait` can speak up early
PRUNE_SECONDS = 600.0
RECORD_SECONDS = 2.0  # what the record of a local effect gets whose caller is cancelled
JOURNAL_SECONDS = HISTORY_SECONDS = 60.0
INSPECT_SECONDS = 30.0  # a database that another program writes to is waited for
ERROR_LIMIT = 16 * 1024  # characters sent of an error's text


class Definition(Protocol):
    """A built workflow, as nexum-py's `workflow(...).build()` returns it; of its `nodes`, each has its `id`."""

    @property
    def workflow_id(self) -> str: ...
    @property
    def version_hash(self) -> str: ...
    @property
    def ir_json(self) -> str: ...
    @property
    def nodes(self) -> Sequence[Any]: ...


class Client:
    """Talks to the server at `address` ("host:port"), or to one of several, "host:port,host:port", that have one
    database: to the next one when it has gone. Belongs to the event loop it is first used in.

    `token` is what a server demands that is open to others than this machine, `tls_ca` a PEM file with the
    certificates to trust for TLS; when not given they are NEXUM_TOKEN and NEXUM_TLS_CA, if set.

    Every method raises ServerUnavailable when no server answers, InvalidRequest, NotFound or Unauthenticated when it
    refuses. `span_attributes()` tells what else its spans are to say, if there are any: see `tracing`.
    """

    def __init__(
        self,
        address: str = wire.DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls_ca: Path | None = None,
        span_attributes: Callable[[], Mapping[str, str]] | None = None,
        way: Way | None = None,
    ) -> None:
        if way is None:
            # These take their time, where no gRPC is needed.
            if "," in address:
                from nexum_runtime.client.several import Several

                way = Several([each.strip() for each in address.split(",")], token, tls_ca)
            else:
                from nexum_runtime.client.remote import Remote

                way = Remote(address, token, tls_ca)
        self.way = way
        self._span_attributes = span_attributes
        self._max_message_bytes = sys.maxsize  # until the engine has told

    @property
    def address(self) -> str:
        """Where it is, as people are told."""
        return self.way.where

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.way.close()

    async def check(self, seconds: float = 2.0) -> None:
        """Return when a Nexum server answers at the address; raise ServerUnavailable if nothing is there in time.

        A server that is there and slow to answer gets ten seconds, if that is longer.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                await self.way.ask("ListExecutions", {"limit": 1}, {}, max(seconds, RPC_SECONDS))
                return
            except ServerUnavailable:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS_MIN)

    async def register(self, workflow: Definition) -> str:
        """Make a workflow known. Returns its compatibility with the version registered before it, or NEW.

        The server tells its limit on sizes in return; from then on what is larger is refused without being sent.
        """
        fields = {
            "workflow_id": workflow.workflow_id,
            "version_hash": workflow.version_hash,
            "ir_json": workflow.ir_json,
        }
        acknowledgement, trailing = await self.way.ask("RegisterWorkflow", fields, {})
        if limit := trailing.get(wire.MAX_MESSAGE_BYTES):
            self._max_message_bytes = int(limit)
        return str(acknowledgement.compatibility)

    async def execute(
        self,
        workflow: Definition,
        input: Any,
        *,
        execution_id: str | None = None,
        max_attempts: int | None = None,
        effect: str | None = None,
        attempt_timeout: float | None = None,
        asks: bool = False,
        takes_args: bool = False,
        deadline: float | None = None,
        default: str | None = None,
        restart: Literal["failed", "unknown"] | None = None,
        timeout: float = 120.0,
        on_wait: OnWait | None = None,
        labels: Labels | None = None,
        wait: bool = True,
    ) -> Outcome:
        """Start an execution, or find the one of this id, and wait for its end; without `wait` not for that.

        A server that is away in the middle is waited for. `on_wait` is told, after a second or two and from then on
        now and then, what the call is waiting for. `input` is any JSON value, `effect` one of `wire.EFFECTS`.
        `timeout` is how many seconds to wait here, not counting the time that a person takes to approve something;
        `attempt_timeout` is how many one attempt at a task may take, and `deadline` how many each of its approvals
        waits for a person, from when it was first asked. With `asks` these are questions: the input is {"question":
        text, "choices": [text, …]}, or has no choices; the answer is the "comment" of their output, and `default` is
        the answer when nobody gives one in time. With `takes_args` a yes may be to other arguments: they are in the
        "args" of that output, and whatever comes after it has to heed them.
        `labels` say what it is to who lists it: texts by the names "kind", "name", "text", "run" and "outcome", and
        under "numbers" what adds up over a session.
        Raises ExecutionTimeout when the time is up (the execution goes on), besides the errors of the class.
        """
        wishes = {
            wire.EXECUTION_ID: execution_id or f"exec-{uuid.uuid4()}",
            wire.LABELS: wire.json_text(labels) if labels else None,
            wire.MAX_ATTEMPTS: max_attempts,
            wire.RESTART: restart,
            wire.EFFECT: effect,
            wire.TIMEOUT_MS: None if attempt_timeout is None else round(attempt_timeout * 1000),
            wire.QUESTION: "true" if asks else None,
            wire.TAKES_ARGS: "true" if takes_args else None,
            wire.DEADLINE_MS: None if deadline is None else max(1, round(deadline * 1000)),
            wire.DEFAULT: None if default is None else json.dumps(default),
        }
        with self._traced("execute", workflow, wishes) as span:
            outcome, _, _ = await self._until_over(workflow, input, wishes, timeout, Watcher(on_wait), wait=wait)
            _tell(span, outcome)
        return outcome

    @asynccontextmanager
    async def local_effect(
        self,
        workflow: Definition,
        input: Any,
        *,
        execution_id: str,
        effect: str | None = None,
        restart: Literal["failed", "unknown"] | None = None,
        timeout: float = 120.0,
        on_wait: OnWait | None = None,
        labels: Labels | None = None,
        synced: bool = False,
    ) -> AsyncIterator["LocalEffect"]:
        """An execution of a one-node workflow whose effect happens here, in this process, and not in a worker.

            async with client.local_effect(definition, input, execution_id="s1/ask/1") as effect:
                if effect.outcome is None:                 # it is ours to execute
                    await effect.record(await ask(input))
            answer = effect.outcome.outputs["ask"]

        `effect.outcome` is there from the start when the execution has ended before; one that another process executes
        at the moment is waited for, one whose process has died is taken over at once, and one that fails there
        meanwhile is restarted here, if `restart` lets a failed one be. With `synced` it begins only when that is on the
        disk, so that whoever tries again after a crash knows that it had begun. Whoever leaves the block without a
        record has failed: with the error that it left by, or, cancelled, as if its process had died. The arguments are
        those of `execute`, `timeout` without the time that the effect itself takes.
        Raises ExecutionTimeout, besides the errors of the class.
        """
        owner = local.new_owner()
        wishes = {
            wire.EXECUTION_ID: execution_id,
            wire.RESTART: restart,
            wire.EFFECT: effect,
            wire.CLAIM: owner,
            wire.LEASE_MS: local.LEASE_MS,
            wire.SYNCED: "true" if synced else None,
            wire.LABELS: wire.json_text(labels) if labels else None,
        }
        with self._traced("local_effect", workflow, wishes) as span:
            watcher = Watcher(on_wait)
            claim_it = partial(self._until_over, workflow, input, wishes, timeout, watcher)
            found, task_id, claim = await claim_it()
            patience = Patience(timeout, watcher)
            local_effect = LocalEffect(self, found, task_id, workflow.nodes[0].id, patience, span, claim_it)
            if not task_id:
                _tell(span, found)
                yield local_effect
                return
            async with local.presence(self, owner, execution_id, task_id, claim, local_effect.stop):
                crash_point("task-claimed")
                try:
                    yield local_effect
                except TaskError as error:
                    how = {"retryable": False, "unknown": error.unknown, "begun": error.begun}
                    await local_effect.give_up(str(error), **how)
                    raise
                except Exception as error:
                    await local_effect.give_up(error_text(error), retryable=False)
                    raise
            _tell(span, local_effect.outcome or replace(found, status="FAILED"))

    async def run_local(
        self,
        workflow: Definition,
        input: Any,
        function: Callable[[], Awaitable[Any]],
        *,
        again: Callable[[], Awaitable[Any]] | None = None,
        **options: Any,
    ) -> Outcome:
        """`await function()` in this process, recorded: a `local_effect` whose output is what it returns.

        When its result is recorded already, `function` is not called; when an earlier attempt may have had its effect,
        `again` is, if there is one. Raises what the function raises.
        """
        async with self.local_effect(workflow, input, **options) as effect:
            if effect.outcome is None:
                call = function if again is None or effect.before == wire.NEW else again
                key = key_of(options["execution_id"], effect.node_id, workflow.version_hash)
                try:
                    with idempotent_by(key), effect.span.running():
                        async with effect.until_stopped():
                            output = await call()
                except ExecutionCancelled:
                    assert effect.outcome is not None, "it was asked for"
                    return effect.outcome
                crash_point("effect-done")
                try:
                    await effect.record(output)
                except asyncio.CancelledError:  # of whoever waits for it; what was done is recorded all the same
                    with suppress(Exception):
                        await asyncio.wait_for(effect.record(output), RECORD_SECONDS)
                    raise
        assert effect.outcome is not None, "it was recorded, or the block was left by an error"
        return effect.outcome

    async def _ask(
        self, method: str, fields: Fields, metadata: Metadata | None = None, seconds: float = RPC_SECONDS
    ) -> Any:
        answer, _ = await self.way.ask(method, fields, metadata or {}, seconds)
        return answer

    @contextmanager
    def _traced(self, name: str, workflow: Definition, wishes: dict[str, Any]) -> Iterator[tracing.Span]:
        """A span around a call, whose context goes with the `wishes`."""
        with tracing.span(
            "client", name, wishes[wire.EXECUTION_ID], more=self._span_attributes, workflow=workflow.workflow_id
        ) as span:
            wishes[wire.TRACEPARENT] = span.traceparent or None
            yield span

    async def _until_over(
        self,
        workflow: Definition,
        input: Any,
        wishes: dict[str, Any],
        timeout: float,
        watcher: Watcher,
        *,
        wait: bool = True,
    ) -> tuple[Outcome, str, Claim | None]:
        """Start or find an execution, and wait for its end, or for its task when `wishes` claim that.

        Returns, besides, the id of that task, and the claim by which the server sees our end; or "" and None.
        """
        execution_id = wishes[wire.EXECUTION_ID]
        request = {
            "workflow_id": workflow.workflow_id,
            "version_hash": workflow.version_hash,
            "input_json": wire.canonical_json(input),
        }
        metadata = {key: str(value) for key, value in wishes.items() if value is not None}
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        wait_ms, pause = FIRST_WAIT_MS, RETRY_SECONDS_MIN
        before: str | None = None
        unregistered, registered = False, False  # what NotFound told, and what was done about it
        unavailable_since, unavailable = None, None  # when it began, and why
        asks_a_person = False
        while (remaining := deadline - clock()) > 0:
            metadata[wire.WAIT_MS] = str(min(wait_ms, int(remaining * 1000)) if wait else 0)
            try:
                if unregistered and not registered:
                    await self.register(workflow)
                    registered = True
                seconds = min(wait_ms / 1000 + RPC_SECONDS, remaining + 1)
                answer, told, claim = await self.way.find(request, metadata, seconds)
            except NotFound:
                if registered:
                    raise
                unregistered = True
                continue
            except ServerUnavailable as error:
                before = before or ""  # the server may have begun it before it went away
                unavailable_since, unavailable = unavailable_since or clock(), error
                if clock() - unavailable_since >= FIRST_WAIT_MS / 1000:
                    watcher("database" if isinstance(error, DatabaseUnavailable) else "server")
                await asyncio.sleep(min(pause, max(remaining, 0)))
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                continue
            unavailable_since, unavailable, pause = None, None, RETRY_SECONDS_MIN
            if before is None:
                before = told.get(wire.STATUS, "")
            outcome = _outcome(execution_id, answer, told, before)
            task_id = told.get(wire.TASK_ID, "")
            failed_elsewhere = outcome.status == "FAILED" and wire.RESTART not in metadata
            if failed_elsewhere and wire.CLAIM in wishes and (restart := wishes[wire.RESTART]):
                metadata[wire.RESTART] = restart  # in another process while this one waited, which now asks for itself
                continue
            if outcome.status != "RUNNING" or task_id or not wait:
                return outcome, task_id, claim
            wait_ms = WAIT_MS
            metadata.pop(wire.RESTART, None)  # what fails from here on failed in this call
            waits_for = told.get(wire.WAITS_FOR, "result")
            if asks_a_person or waits_for == "approval":  # when exactly it was approved since, is not known
                deadline = clock() + timeout
            asks_a_person = waits_for == "approval"
            if not (waits_for == "worker" and wire.CLAIM in wishes):  # then it is about to be
                watcher(waits_for)
        if unavailable is not None:
            try:
                raise unavailable
            finally:
                del unavailable  # which refers to this frame, and that to the connection
        raise ExecutionTimeout(
            f"Execution {execution_id} had not ended after {timeout:g} s. It goes on without you; "
            f"see what it does with: nexum show {execution_id}",
            execution_id,
        )

    async def status(self, execution_id: str, *, wait_ms: int = 0) -> Outcome:
        """An execution as it is now, or with `wait_ms` as soon as it has ended."""
        metadata, seconds = {wire.WAIT_MS: str(wait_ms)}, RPC_SECONDS + wait_ms / 1000
        answer, trailing = await self.way.ask("GetStatus", {"execution_id": execution_id}, metadata, seconds)
        return _outcome(execution_id, answer, trailing, before="")

    async def executions(
        self, prefix: str = "", limit: int = 20, *, status: str = "", workflow_id: str = ""
    ) -> list[Any]:
        """The newest executions first, as nexum-py's ExecutionSummary messages; an empty filter lets all pass."""
        fields = {"limit": limit, "status": status, "workflow_id": workflow_id}
        answer = await self._ask("ListExecutions", fields, {wire.PREFIX: prefix} if prefix else {})
        return list(answer.executions)

    async def listed(
        self, prefix: str = "", limit: int = 20, *, status: str = "", workflow_id: str = ""
    ) -> list[dict[str, Any]]:
        """`executions` as people are told of them: `status` is STOPPED, UNKNOWN, WAITING, PARKED, RUNNING, COMPLETED,
        FAILED or CANCELLED.

        Each is `{"execution_id", "workflow_id", "version_hash", "status", "created_at", "labels": {…}}`.
        """
        fields = {"limit": limit, "status": status, "workflow_id": workflow_id}
        answer = await self._ask("Executions", fields, {wire.PREFIX: prefix} if prefix else {}, INSPECT_SECONDS)
        return list(json.loads(answer.completed_nodes_json))

    async def versions(self, workflow_id: str = "") -> list[Any]:
        """All versions of a workflow, or of every one, the newest first, as nexum-py's VersionInfo messages."""
        answer = await self._ask("ListWorkflowVersions", {"workflow_id": workflow_id})
        return list(answer.versions)

    async def definition(self, workflow_id: str, version_hash: str = "") -> Any:
        """One version of a workflow with its IR, as nexum-py's WorkflowIR message; by default the newest."""
        return await self._ask("Definition", {"workflow_id": workflow_id, "version_hash": version_hash})

    async def inspect(self) -> dict[str, Any]:
        """What `nexum doctor` goes by: `database`, `executions`, `workers`, `waiting`, `running`, `expired` and
        `unknown`, as the server's `Engine.inspect` and `Store.inspect` describe them."""
        answer = await self._ask("Inspect", {}, {}, INSPECT_SECONDS)
        return dict(json.loads(answer.completed_nodes_json))

    async def approvals(self) -> list[Any]:
        """What waits for a person's yes, as nexum-py's messages: `execution_id`, `node_id`, `workflow_id` and
        `started_at`, since when."""
        return list((await self._ask("GetPendingApprovals", {})).items)

    async def approve(
        self,
        execution_id: str,
        node_id: str,
        approver: str,
        comment: str = "",
        *,
        args: dict[str, Any] | None = None,
    ) -> str:
        """Say yes to a node that waits for it. Returns what came of it, in words.

        `args` are what it is to go on with instead of what was asked for. To a question, `comment` is the answer.
        """
        method = "ApproveTask"
        if args is not None:
            method, comment = "Approve", wire.json_text({"comment": comment, "args": args})
        fields = {"execution_id": execution_id, "node_id": node_id, "approver": approver, "comment": comment}
        return str((await self._ask(method, fields)).message)

    async def reject(self, execution_id: str, node_id: str, approver: str, reason: str) -> str:
        """Say no. Returns what came of it, in words."""
        fields = {"execution_id": execution_id, "node_id": node_id, "approver": approver, "reason": reason}
        return str((await self._ask("RejectTask", fields)).message)

    async def history(self, execution_id: str) -> AsyncIterator[dict[str, Any]]:
        """All that is known of an execution, or of every one under a prefix that ends in "/", oldest first."""
        async for answer in self.way.stream("History", {"execution_id": execution_id}, {}, HISTORY_SECONDS):
            yield json.loads(answer.completed_nodes_json)

    async def journal(
        self, prefix: str, *, to_go_on: bool = False, tell: Callable[[str, str], None] = lambda *_: None
    ) -> dict[str, dict[str, Any]]:
        """The outputs of every COMPLETED execution under a prefix, in one call: `{execution_id: {node: output}}`.

        These are final. `tell` is told of the session that this one was first forked from, or of itself, and of the
        address of the server's page, or "". Raises ServerUnavailable when no server answers, and SessionStopped
        `to_go_on` with a session that is stopped.
        """
        found: dict[str, dict[str, Any]] = {}
        fields, metadata = {"execution_id": prefix}, {wire.TO_GO_ON: "true"} if to_go_on else {}

        def read_metadata(told: dict[str, Any]) -> None:
            tell(told.get(wire.FIRST_SESSION, prefix.partition("/")[0]), told.get(wire.PAGE, ""))

        async for part in self.way.stream("Journal", fields, metadata, JOURNAL_SECONDS, read_metadata):
            found |= json.loads(part.completed_nodes_json)
        return found

    async def follow(
        self, session_id: str, cursor: str = "", *, to_the_end: bool = False, patience: float = 0
    ) -> AsyncGenerator[dict[str, Any], None]:
        """All that is recorded of a session from that cursor on ("" is from its beginning), each thing once and in
        order, and then each as it happens; between that the words of answers under way.

        - `{"cursor", "execution_id", "type", "at_ms", "node_id", "attempt", "labels", …}`; a TaskCompleted has its
          "output" unless that is large.
        - `{"cursor", "execution_id", "words", "anew", "skipped"}`: what is new of an answer, `anew` when it begins with
          that, and how many characters before it were left out.
        - `{"cursor", "type": "CaughtUp", "under_way"}` comes when all is told that was recorded before, and again after
          an interruption: with the ids of the executions that are under way.

        `to_the_end`: it ends when a run has ended and nothing of the session is under way. To go on after an
        interruption, give the cursor that came last. A server that goes away is waited for, for `patience` seconds;
        then this raises ServerUnavailable. Raises InvalidRequest for what is no cursor, and LimitExceeded for a session
        of which more is under way than can be followed.
        """
        under_way: set[str] = set()
        is_live = has_ended = False
        while True:
            metadata = {wire.CURSOR: cursor} if cursor else {}
            try:
                async for part in self.way.stream("Follow", {"execution_id": session_id}, metadata, None):
                    for told in json.loads(part.completed_nodes_json):
                        cursor = told["cursor"]
                        yield told
                        match told.get("type"):
                            case "CaughtUp":
                                is_live = True
                                under_way |= set(told.get("under_way", ()))
                                found = None if under_way or not to_the_end else await self.session(session_id)
                                has_ended = found is not None and found["state"] in ("COMPLETED", "FAILED")
                            case "ExecutionStarted" | "ExecutionRestarted" | "ExecutionForked":
                                under_way.add(told["execution_id"])
                                has_ended = False
                            case "ExecutionCompleted" | "ExecutionFailed" | "ExecutionCancelled":
                                under_way.discard(told["execution_id"])
                                has_ended = has_ended or told["labels"].get("kind") == "run"
                        if to_the_end and is_live and has_ended and not under_way:
                            return
            except ServerUnavailable:
                if not patience:
                    raise
            await self.check(patience)

    async def publish_words(self, execution_id: str, attempt: int, at: int, words: str) -> None:
        """Tell who follows what is said in an answer that is not recorded yet: `words` are of this attempt's, from its
        character `at` on."""
        fields = {"execution_id": execution_id, "node_id": str(attempt), "reason": words}
        await self._ask("PublishWords", fields, {wire.WORDS_AT: str(at)})

    async def sessions(self, prefix: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """Sessions whose id begins with `prefix`, the one of which an execution was started last first.

        Each is `{"session_id", "state", "stopped", "began_at_ms", "heard_at_ms", "executions", "kinds", "recorded",
        "runs", "numbers", "unknown", "asks", "waiting", "waits_for_worker", "running", "end",
        "forked_from", "taken_back"}`;
        docs/command.md says what they are.
        """
        metadata = {wire.PREFIX: prefix} if prefix else {}
        answer = await self._ask("ListSessions", {"limit": limit}, metadata, INSPECT_SECONDS)
        return list(json.loads(answer.completed_nodes_json))

    async def session(self, session_id: str) -> dict[str, Any] | None:
        """One session, as `sessions` tells of it; None when it is not known."""
        return next(iter(await self.sessions(f"{session_id}/", 1)), None)

    async def stop_session(self, session_id: str, by: str = "", reason: str = "") -> dict[str, list[str]]:
        """From now on nothing of this session begins, and what runs of it is stopped, but for what happens once.

        Returns `{"stopped": [execution id], "let_finish": [execution id]}`. Raises NotFound for one that is not known.
        """
        fields = {"execution_id": session_id, "approver": by, "reason": reason}
        return dict(json.loads((await self._ask("StopSession", fields)).message))

    async def go_session(self, session_id: str) -> bool:
        """Let a stopped session go on. Returns whether it was stopped. Raises NotFound for one that is not known."""
        return bool((await self._ask("GoSession", {"execution_id": session_id})).ok)

    async def forget_session(
        self, session_id: str, *, after: int | None = None, turn: str = "", by: str = "", even_once: bool = False
    ) -> dict[str, Any]:
        """Take back what a session has recorded: all that was started after its first `after` turns and what was called
        between these, or a `turn` (its number or its id) and all that was started after it.

        Returns `{"session_id": under which it can be read, "executions": how many, "turns": how many are left}`. Raises
        InvalidRequest for what still runs, and, unless `even_once`, for what happens once and may have happened;
        NotFound.
        """
        metadata = {wire.EVEN_ONCE: str(even_once).lower()} | ({} if after is None else {wire.AFTER: str(after)})
        fields = {"execution_id": session_id, "node_id": turn, "approver": by}
        answer = await self._ask("ForgetSession", fields, metadata, INSPECT_SECONDS)
        return dict(json.loads(answer.message))

    async def fork_session(
        self, session_id: str, new_session_id: str, *, before: str | int | None = None, by: str = ""
    ) -> dict[str, Any]:
        """Make a new session that has all that has ended of another one, or what was started there `before` a turn: its
        number or its id. The other one stays as it is.

        Returns `{"executions": how many, "turns": how many of them are turns, "left_out": [execution id]}`, the last of
        what has not ended. Raises InvalidRequest for a new session that is there already, NotFound.
        """
        from_where = "" if before is None else str(before)
        fields = {"execution_id": session_id, "node_id": new_session_id, "reason": from_where, "approver": by}
        answer = await self._ask("ForkSession", fields, {}, INSPECT_SECONDS)
        return dict(json.loads(answer.message))

    async def why_stopped(self, execution_id: str) -> str | None:
        """Why an execution does not go on: "" when it was cancelled, None when nothing keeps it from that."""
        outcome = await self.status(execution_id)
        if outcome.status == "CANCELLED":
            return ""
        session_id = execution_id.partition("/")[0]
        found = await self.session(session_id)
        return str(found["stopped"]["words"]) if found and found["stopped"] else None

    async def attend(self, worker_id: str) -> AsyncIterator[None]:
        """Be seen by the server as this worker: yields when it does. Its tasks are given up when this ends."""
        async for _ in self.way.stream("Attend", {"worker_id": worker_id}, {}, None):
            yield

    async def cancel(self, execution_id: str) -> str:
        """Cancel an execution. Returns what came of it, in words."""
        answer = await self._ask("CancelExecution", {"execution_id": execution_id})
        return str(answer.message)

    async def resolve(
        self, execution_id: str, kind: Literal["result", "failed", "retry"], text: str = "", *, node_id: str = ""
    ) -> str:
        """Settle an unknown outcome by its result (`text` is JSON) or its failure, or have it tried again.

        `node_id` says which node when the outcome of several is unknown. Returns what came of it, in words.
        """
        fields = {"execution_id": execution_id, "node_id": node_id, "reason": text}
        answer = await self._ask("Resolve", fields, {wire.RESOLUTION: kind})
        return str(answer.message)

    async def prune(self, prefix: str, older_than_ms: int, *, dry_run: bool = False) -> dict[str, int]:
        """Delete what ended that long ago or earlier under a prefix of ids ("" is all of them).

        Returns `{"executions": how many, "bytes": given back to the disk}`. What runs stays, and so does what waits
        for a person's word: an outcome that is unknown.
        """
        metadata = {wire.OLDER_THAN_MS: str(older_than_ms), wire.DRY_RUN: str(dry_run).lower()}
        answer = await self._ask("Prune", {"execution_id": prefix}, metadata, PRUNE_SECONDS)
        return dict(json.loads(answer.message))

    # The worker's side

    async def poll(self, worker_id: str, workflow: Definition, *, lease_ms: int, wait_ms: int = 0) -> Any | None:
        """Claim one task of this workflow, waiting up to `wait_ms` for it: nexum-py's PollResponse, or None."""
        metadata = {wire.LEASE_MS: str(lease_ms), wire.WAIT_MS: str(wait_ms)}
        fields = {"worker_id": worker_id, "version_hash": workflow.version_hash}
        seconds = RPC_SECONDS + wait_ms / 1000
        answer = await self._ask("PollTask", fields, metadata | self._named(workflow), seconds)
        return answer if answer.has_task else None

    async def stream_tasks(
        self, worker_id: str, workflow: Definition, *, lease_ms: int, slots: int, outgoing: "Outgoing"
    ) -> AsyncGenerator[Any, None]:
        """A worker's long call for one workflow: nexum-py's PollResponses, tasks and acknowledgements, as they come.

        At most `slots` tasks are unfinished at a time, of all its workflows together. What `outgoing` has is sent
        meanwhile; when that has ended, no new task comes, and the call ends when everything is acknowledged.
        """
        metadata = {
            wire.WORKER_ID: worker_id,
            wire.VERSION_HASH: workflow.version_hash,
            wire.LEASE_MS: str(lease_ms),
            wire.SLOTS: str(slots),
            wire.HEARS_STOPS: "true",
        }
        async with aclosing(self.way.stream_tasks(metadata | self._named(workflow), outgoing)) as answers:
            async for answer in answers:
                yield answer

    def _named(self, workflow: Definition) -> dict[str, str]:
        """For a name that no header can carry, the server goes by what this channel has registered."""
        return {wire.WORKFLOW_ID: workflow.workflow_id} if wire.fits_header(workflow.workflow_id) else {}

    def check_size(self, output_json: str) -> None:
        """Raise LimitExceeded for a result that is larger than what the server accepts."""
        if reason := wire.too_large("The result", output_json, self._max_message_bytes):
            raise LimitExceeded(reason)

    async def complete(self, task_id: str, output_json: str, labels: Labels | None = None) -> str:
        """Record a task's result, and say with `labels` anew what its execution is.

        Returns "", or in words why it was not recorded. Raises LimitExceeded.
        """
        self.check_size(output_json)
        return await self.way.complete(task_id, output_json, wire.json_text(labels) if labels else "")

    async def fail(
        self,
        task_id: str,
        error: str,
        *,
        retryable: bool = True,
        interrupted: bool = False,
        unknown: bool = False,
        begun: bool = True,
    ) -> str:
        """End an attempt that failed, or was `interrupted` by the end of its worker.

        `unknown`: its effect may have happened all the same; `begun=False`: it cannot have. Returns "", or in words why
        nothing changed.
        """
        flags = {
            wire.RETRYABLE: retryable,
            wire.INTERRUPTED: interrupted,
            wire.UNKNOWN: unknown,
            wire.BEGUN: begun,
        }
        metadata = {key: str(value).lower() for key, value in flags.items()}
        fields = {"task_id": task_id, "error_message": _wording(error)}
        return str((await self._ask("FailTask", fields, metadata)).message)

    async def park(self, task_id: str, ended: Sequence[str] = (), ms: int | None = None) -> str:
        """Give an attempt back until one of these executions of its session has ended, or `ms` from now on are over.

        It counts as none, and its task is any worker's when that has come. Returns "", or in words why nothing
        changed. Raises InvalidRequest for what cannot be parked so, and for an execution that is not known, and
        LimitExceeded.
        """
        told = {"ended": [*ended]} | ({} if ms is None else {"ms": ms})
        fields = {"task_id": task_id, "output_json": wire.json_text(told)}
        return str((await self._ask("Park", fields)).message)

    async def heartbeat(
        self, worker_id: str, task_ids: Collection[str] | None, *, standstill: tuple[int, str] | None = None
    ) -> list[str]:
        """Renew the leases of the tasks that this worker holds, or of all that are its own. Returns the ids of those it
        should stop.

        `standstill` is for how many milliseconds it has stood still, and where.
        """
        held = "" if task_ids is None else wire.canonical_json(list(task_ids))
        metadata = {} if standstill is None else {wire.STANDSTILL: json.dumps(standstill)}
        answer = await self._ask("Heartbeat", {"worker_id": worker_id, "version_hash": held}, metadata)
        return [str(task_id) for task_id in json.loads(answer.message)]


def _wording(error: str) -> str:
    """An error's text as it can be sent: no secrets, not too long, no half characters, which UTF-8 does not know."""
    return redact(error)[:ERROR_LIMIT].encode(errors="replace").decode()


def _tell(span: tracing.Span, outcome: Outcome) -> None:
    span.tell(outcome=outcome.status, before=outcome.before, attempts=outcome.attempts)


def _outcome(execution_id: str, answer: Any, trailing: dict[str, Any], before: str) -> Outcome:
    error = trailing.get(wire.ERROR)
    return Outcome(
        execution_id=execution_id,
        status=answer.status,
        before=before,
        outputs=json.loads(answer.completed_nodes_json or "{}"),
        error=error.decode() if error is not None else None,
        error_code=trailing.get(wire.ERROR_CODE),
        attempts=int(trailing.get(wire.ATTEMPTS, 0)),
    )
