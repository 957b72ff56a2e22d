"""The JSON API: what the page shows and does, for programs. docs/api-http.md says how to use it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NexumError, NotFound, SessionStopped
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.web.actions import ACTIONS, Action, checked
from nexum_runtime.server.web.feed import Feed
from nexum_runtime.server.web.reading import COURSE_LIMIT, NO_END, PEOPLE_LIMIT, SESSIONS_LIMIT, Reading

BODY_BYTES_LIMIT = 17 * 1024**2  # of what is sent here: a result of 16 MiB fits
BODY_SECONDS = 30.0  # for all of it to arrive
CODES: dict[type[Exception], tuple[int, str]] = {  # gRPC's, and what HTTP calls them
    InvalidRequest: (400, "INVALID_ARGUMENT"),
    NotFound: (404, "NOT_FOUND"),
    LimitExceeded: (413, "RESOURCE_EXHAUSTED"),
    SessionStopped: (409, "FAILED_PRECONDITION"),
    StoreUnavailable: (503, "UNAVAILABLE"),
    MemoryError: (503, "UNAVAILABLE"),
}
TOLD = (NexumError, StoreUnavailable, MemoryError)
START = {  # what an execution is started with, and what it is
    "execution_id": "Its id, of your choosing, in its session: s1/import/1. Started again, it is found.",
    "workflow_id": "A workflow that a worker has registered.",
    "version_hash": "Its version; by default the one that was registered last.",
    "input": "Any JSON.",
    "labels": "What it is, for who lists it: texts by the names kind, name, text.",
    "effect": "read, idempotent or once: what a second attempt would do.",
    "max_attempts": "How many attempts each of its tasks has.",
}
READS = {  # path → what it tells, its parameters
    "/api/sessions": ("Sessions, the most recently active first.", ("prefix", "status", "limit")),
    "/api/session": ("One session.", ("id",)),
    "/api/executions": ("The newest executions of a session, with events.", ("session", "before", "limit")),
    "/api/execution": ("One execution, with its input, its outputs and its events.", ("id",)),
    "/api/output": ("The whole JSON of an output; without a node, of the input.", ("id", "node")),
    "/api/approvals": ("What waits for a person, the longest first.", ("limit",)),
    "/api/unknown": ("Executions whose outcome is unknown, the newest first.", ("limit",)),
    "/api/server": ("What the doctor finds: workers, queue, database.", ()),
    "/api/workflows": ("Versions of workflows, the newest first.", ("workflow",)),
    "/api/workflow": ("One version with its nodes; the newest without a version.", ("workflow", "version")),
    "/api/diff": ("The difference between two versions.", ("workflow", "old", "new")),
    "/api/live": ("Server-sent events: what is committed. They go on from Last-Event-ID.", ("session",)),
}  # fmt: skip


def routes(reading: Reading, feed: Feed) -> list[Route]:
    async def sessions(query: dict[str, str]) -> Any:
        limit = number(query, "limit", 50, SESSIONS_LIMIT)
        return {"sessions": await reading.sessions(query.get("prefix", ""), query.get("status", "").upper(), limit)}

    async def session(query: dict[str, str]) -> Any:
        return await reading.session(needed(query, "id"))

    async def executions(query: dict[str, str]) -> Any:
        before, limit = number(query, "before", NO_END, NO_END), number(query, "limit", 200, COURSE_LIMIT)
        return await reading.course(f"{needed(query, 'session')}/", before, limit)

    async def execution(query: dict[str, str]) -> Any:
        return await reading.execution(needed(query, "id"))

    async def output(request: Request) -> Response:
        query = dict(request.query_params)
        text = await reading.whole(needed(query, "id"), query.get("node", ""))
        return Response(text, media_type="application/json")

    async def approvals(query: dict[str, str]) -> Any:
        return {"approvals": await reading.approvals(number(query, "limit", PEOPLE_LIMIT, PEOPLE_LIMIT))}

    async def unknown(query: dict[str, str]) -> Any:
        return {"unknown": await reading.unknown(number(query, "limit", PEOPLE_LIMIT, PEOPLE_LIMIT))}

    async def server(query: dict[str, str]) -> Any:
        return await reading.server()

    async def workflows(query: dict[str, str]) -> Any:
        return {"versions": await reading.workflows(query.get("workflow", ""))}

    async def workflow(query: dict[str, str]) -> Any:
        found = await reading.definition(needed(query, "workflow"), query.get("version", ""))
        ir = json.loads(found.ir_json)
        return {"workflow_id": found.workflow_id, "version_hash": found.version_hash, "ir": ir}

    async def diff(query: dict[str, str]) -> Any:
        return await reading.difference(needed(query, "workflow"), needed(query, "old"), needed(query, "new"))

    async def live(request: Request) -> Response:
        last_id = request.headers.get("last-event-id", "") or request.query_params.get("after", "")
        stream = _server_sent(feed, request.query_params.get("session", ""), last_id)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def start(request: Request) -> Response:
        return json_response(await reading.start(_of_start(await _json_of(request))))

    async def openapi(request: Request) -> Response:
        return JSONResponse(description())

    reads: dict[str, Callable[[dict[str, str]], Awaitable[Any]]] = {
        "/api/sessions": sessions,
        "/api/session": session,
        "/api/executions": executions,
        "/api/execution": execution,
        "/api/approvals": approvals,
        "/api/unknown": unknown,
        "/api/server": server,
        "/api/workflows": workflows,
        "/api/workflow": workflow,
        "/api/diff": diff,
    }
    return [
        *(Route(path, _reads(tell), methods=["GET"]) for path, tell in reads.items()),
        Route("/api/output", output, methods=["GET"]),
        Route("/api/live", live, methods=["GET"]),
        Route("/api/openapi.json", openapi, methods=["GET"]),
        Route("/api/start", start, methods=["POST"]),
        *(Route(f"/api/{name}", _acts(reading, action), methods=["POST"]) for name, action in ACTIONS.items()),
    ]


def refused(error: Exception) -> Response:
    """An error that gRPC tells by a code: see CODES."""
    status, code = CODES[next(each for each in CODES if isinstance(error, each))]
    return json_response({"code": code, "message": str(error) or wire.NO_MEMORY}, status)


def json_response(told: Any, status: int = 200) -> Response:
    text = wire.json_text(told)
    return Response(text.encode(errors="replace"), status, media_type="application/json")


def number(query: dict[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not 1 <= int(text) <= most:
        raise InvalidRequest(f"{name} is {text[:40]!r}; it must be a whole number from 1 to {most}.")
    return int(text)


def needed(query: dict[str, str], name: str) -> str:
    if not query.get(name):
        raise InvalidRequest(f"Say which: {name} is missing.")
    return query[name]


async def body_of(request: Request) -> bytes:
    """Raises LimitExceeded, and InvalidRequest for what does not arrive."""
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                found += part
                if len(found) > BODY_BYTES_LIMIT:
                    raise LimitExceeded(f"What was sent is larger than {BODY_BYTES_LIMIT} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise InvalidRequest("The body did not arrive.") from None
    return bytes(found)


def _reads(tell: Callable[[dict[str, str]], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def read(request: Request) -> Response:
        return json_response(await tell(dict(request.query_params)))

    return read


def _acts(reading: Reading, action: Action) -> Callable[[Request], Awaitable[Response]]:
    async def act(request: Request) -> Response:
        return json_response({"message": await action.run(reading, checked(action, await _json_of(request)))})

    return act


async def _json_of(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("Send JSON, and say so: Content-Type: application/json")
    try:
        return wire.parse_json((await body_of(request)).decode() or "{}")
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None


def _of_start(given: Any) -> dict[str, Any]:
    """Raises InvalidRequest for what a start does not take, or lacks. The rest the engine looks at."""
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if wrong := sorted(given.keys() - START.keys()):
        raise InvalidRequest(f"start takes no {wrong[0][:80]!r}.")
    for name in ("execution_id", "workflow_id"):
        if not given.get(name):
            raise InvalidRequest(f"start needs {name!r}.")
    for name in ("execution_id", "workflow_id", "version_hash", "effect"):
        if not isinstance(given.get(name) or "", str):
            raise InvalidRequest(f"{name!r} must be a text.")
    return {name: value for name, value in given.items() if value is not None}


async def _server_sent(feed: Feed, session_id: str, last_id: str) -> AsyncIterator[str]:
    async for told in feed.follow(session_id, last_id):
        yield "".join(
            f": {kind}\n\n" if kind == "quiet" else f"id: {number}\nevent: {kind}\ndata: {wire.json_text(data)}\n\n"
            for number, kind, data in told
        )


def description() -> dict[str, Any]:
    """The API as OpenAPI has it."""
    text = {"type": "string"}
    schema_of_error = {"schema": {"$ref": "#/components/schemas/Error"}}
    error = {"description": "Refused, with a sentence", "content": {"application/json": schema_of_error}}
    paths: dict[str, Any] = {}
    for path, (what, parameters) in READS.items():
        kind = "text/event-stream" if path == "/api/live" else "application/json"
        paths[path] = {
            "get": {
                "summary": what,
                "parameters": [{"name": name, "in": "query", "schema": text} for name in parameters],
                "responses": {"200": {"description": what, "content": {kind: {}}}, "4XX": error},
            }
        }
    kinds = {"flag": {"type": "boolean"}, "json": {"type": "object"}}
    for name, action in ACTIONS.items():
        fields = {field.name: kinds.get(field.kind, text) | {"description": field.label} for field in action.fields}
        needs = [field.name for field in action.fields if field.is_needed]
        if action.target:
            fields, needs = {action.target: text} | fields, [action.target, *needs]
        what = f"As `nexum {name}`. {action.what}"
        paths[f"/api/{name}"] = _post(what, fields, needs, "Done, and what came of it", error)
    kinds = {"input": {}, "labels": {"type": "object"}, "max_attempts": {"type": "integer"}}
    fields = {name: kinds.get(name, text) | {"description": what} for name, what in START.items()}
    needs = ["execution_id", "workflow_id"]
    paths["/api/start"] = _post("Start an execution, or find the one of this id.", fields, needs, "Recorded", error)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nexum", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {"Error": {"type": "object", "properties": {"code": text, "message": text}}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(what: str, fields: dict[str, Any], needs: list[str], done: str, error: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": needs, "additionalProperties": False}
    return {
        "post": {
            "summary": what,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": done}, "4XX": error},
        }
    }


def not_found(path: str) -> Response:
    if path.startswith("/api/"):
        told = {"code": "NOT_FOUND", "message": "There is no such method. See /api/openapi.json"}
        return JSONResponse(told, 404)
    return PlainTextResponse("There is no such page. Begin at /\n", 404)
