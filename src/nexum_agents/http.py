"""Runs that workers execute, over HTTP: an app to mount in your own web server.

    app.mount("/runs", runs_app([researcher]))     # FastAPI's app, or Starlette's

    POST start     {"agent", "input", "session_id", "max_turns", "context", "version"} → {"session_id", "execution_id"}
    GET  result    ?execution_id=…&wait=20 → {"execution_id", "status", "error"} and, of a COMPLETED one, a RunOutcome
    GET  events    ?session_id=…: server-sent events, as `follow` tells them; they go on from Last-Event-ID
    POST stop      {"session_id", "reason", "by"} → {"let_finish": […]}

What is refused is `{"code": …, "message": …}`, as the API of Nexum's own page has it (docs/api-http.md).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from agents import Agent
from agents.run import DEFAULT_MAX_TURNS
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, SessionStopped
from nexum_agents.following import follow
from nexum_agents.handling import stop_session
from nexum_agents.sessions import check_session_id
from nexum_agents.starting import RUN, outcome_of, start_run
from nexum_runtime import ExecutionTimeout, NexumError, ServerUnavailable, wire
from nexum_runtime.errors import LimitExceeded, NotFound
from nexum_runtime.server.web.api import body_of

QUIET_SECONDS = 15.0  # without an event, and a comment is sent: else proxies hang up
START_SECONDS = 30.0  # for a server that is away; to start again is safe
WAIT_SECONDS_LIMIT = wire.WAIT_MS_LIMIT // 1000


class _Start(BaseModel):
    model_config = ConfigDict(extra="forbid")
    agent: str
    input: str | list[Any]
    session_id: str
    max_turns: int = DEFAULT_MAX_TURNS
    context: Any = None
    version: str = ""


class _Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")
    session_id: str
    reason: str = ""
    by: str = ""


def runs_app(agents: Iterable[str | Agent[Any]]) -> Starlette:
    """An ASGI app that starts runs of these agents. It also tells what happens in any session, and stops it.

        app.mount("/runs", runs_app([researcher]))

    Each run is the very one that `start_run` starts with the same agent, input and session, so a request can be sent
    again. Whoever can ask this app can start runs and read what they answer: put your own login before it.
    """
    names = {agent if isinstance(agent, str) else agent.name for agent in agents}

    async def start(request: Request) -> Any:
        asked = await _body(request, _Start)
        if asked.agent not in names:
            raise _Refused(404, "NOT_FOUND", f"No agent {asked.agent[:80]!r} can be run here.")
        async with asyncio.timeout(START_SECONDS):
            run = await start_run(**dict(asked))
        return {"session_id": run.session_id, "execution_id": run.execution_id}

    return Starlette(
        routes=[
            Route("/start", _told(start), methods=["POST"]),
            Route("/result", _told(_result), methods=["GET"]),
            Route("/events", _told(_events), methods=["GET"]),
            Route("/stop", _told(_stop), methods=["POST"]),
        ]
    )


async def _result(request: Request) -> Any:
    execution_id, wait = request.query_params.get("execution_id", ""), request.query_params.get("wait", "0")
    if execution_id.split("/")[1:2] != [RUN]:
        raise _Refused(404, "NOT_FOUND", f"{execution_id[:80]!r} is no run: take the execution_id that start told.")
    if not re.fullmatch("[0-9]{1,2}", wait) or int(wait) > WAIT_SECONDS_LIMIT:
        raise _Refused(400, "INVALID_ARGUMENT", f"wait is {wait[:40]!r}; it must be 0 to {WAIT_SECONDS_LIMIT} seconds.")
    outcome = await nexum_client().status(execution_id, wait_ms=int(wait) * 1000)
    told = {"execution_id": execution_id, "status": outcome.status, "error": outcome.error}
    return told | (asdict(outcome_of(outcome)) if outcome.status == "COMPLETED" else {})


async def _events(request: Request) -> Response:
    session_id = request.query_params.get("session_id", "")
    check_session_id(session_id)
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_server_sent(session_id, after), media_type="text/event-stream", headers=headers)


async def _server_sent(session_id: str, after: str) -> AsyncIterator[str]:
    """Ends with an event "end", or "refused": a browser that is only hung up on comes again for ever."""
    told: asyncio.Queue[str] = asyncio.Queue(1)  # who reads slowly is told of words that were left out

    async def tell() -> None:
        try:
            async with aclosing(follow(session_id, after=after)) as events:
                async for event in events:
                    await told.put(f"id: {event.cursor}\n{_event(event.kind, event.to_json())}")
            await told.put(_event("end", {}))
        except DurableCallError as error:
            await told.put(_event("refused", {"code": _code_of(error)[1], "message": str(error)}))

    telling = asyncio.create_task(tell())
    try:
        while not (telling.done() and told.empty()):
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    text = await told.get()
            except TimeoutError:
                text = ": quiet\n\n"
            yield text
            await asyncio.sleep(0)  # lets it end
        telling.result()  # raises what went wrong
    finally:
        telling.cancel()


def _event(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {wire.json_text(data)}\n\n"


async def _stop(request: Request) -> Any:
    asked = await _body(request, _Stop)
    return {"let_finish": await stop_session(asked.session_id, reason=asked.reason, by=asked.by)}


class _Refused(Exception):
    """(HTTP's status, gRPC's code, a sentence)"""


def _told(tell: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            told = await tell(request)
            return told if isinstance(told, Response) else _json(told)
        except _Refused as refused:
            status, code, message = refused.args
        except TimeoutError:
            status, code, message = 503, "UNAVAILABLE", "No Nexum server answers. Ask again: nothing is started twice."
        except (DurableCallError, NexumError) as error:
            status, code, message = *_code_of(error), str(error)
        return _json({"code": code, "message": message}, status)

    return endpoint


def _code_of(error: Exception) -> tuple[int, str]:
    causes = (error, error.__context__)
    if any(isinstance(each, ServerUnavailable | ExecutionTimeout) for each in causes):
        return 503, "UNAVAILABLE"
    if isinstance(error, LimitExceeded):
        return 413, "RESOURCE_EXHAUSTED"
    if isinstance(error, SessionStopped):
        return 409, "FAILED_PRECONDITION"
    if any(isinstance(each, NotFound) for each in causes):
        return 404, "NOT_FOUND"
    return 400, "INVALID_ARGUMENT"


async def _body(request: Request, shape: type[Any]) -> Any:
    """Raises _Refused. Only what says that it is JSON is taken: a page of a stranger's cannot send that."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(400, "INVALID_ARGUMENT", "Send JSON, and say so: Content-Type: application/json")
    found = await body_of(request)
    try:
        return shape.model_validate(wire.parse_json(found.decode()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][:1]))
        raise _Refused(400, "INVALID_ARGUMENT", f"{where or 'The body'}: {first['msg']}.") from None
    except ValueError as error:
        raise _Refused(400, "INVALID_ARGUMENT", f"The body is not JSON: {error}.") from None


def _json(told: Any, status: int = 200) -> Response:
    text = wire.json_text(told).encode(errors="replace")
    return Response(text, status, media_type="application/json", headers={"Cache-Control": "no-store"})
