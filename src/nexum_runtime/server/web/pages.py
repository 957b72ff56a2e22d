"""The screens, made by the server: each is one request, bounded, and works without its script."""

import asyncio
import hmac
import json
import time
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.model.contract import session_of
from nexum_runtime.server.web import api, drawing
from nexum_runtime.server.web.actions import ACTIONS, Action, checked
from nexum_runtime.server.web.gate import cookie_name, cookie_of
from nexum_runtime.server.web.reading import COURSE_LIMIT, NO_END, SESSIONS_LIMIT, Reading, waits
from nexum_runtime.server.web.showing import FOLDER, environment, link
from nexum_runtime.telling import items
from nexum_runtime.telling.story import Story, offset
from nexum_runtime.telling.versions import node_text
from nexum_runtime.telling.words import OPEN, counts, question, waits_for, what_text

STATES = ("STOPPED", "UNKNOWN", "WAITING", "PARKED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")
SHOWN_SESSIONS, SHOWN_EXECUTIONS = 50, 200  # at first
BADGE_LIMIT = 99  # of what waits for a person, beside the name of its screen
COOKIE_SECONDS = 30 * 24 * 3600
STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Pages:
    def __init__(self, reading: Reading, token: str | None, user: str) -> None:
        self._reading, self._token, self._user = reading, token, user
        self._templates = environment()

    def routes(self) -> list[Route]:
        screens = {
            "/": self.sessions,
            "/session": self.session,
            "/execution": self.execution,
            "/approvals": self.approvals,
            "/unknown": self.unknown,
            "/workers": self.workers,
            "/workflows": self.workflows,
            "/workflow": self.workflow,
        }
        return [
            *(Route(path, screen, methods=["GET"]) for path, screen in screens.items()),
            *(Route(f"/do/{name}", self._does(action), methods=["POST"]) for name, action in ACTIONS.items()),
            Route("/login", self.login, methods=["GET", "POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/static/{name}", self.static, methods=["GET"]),
        ]

    async def show(self, template: str, title: str, *, http: int = 200, **more: Any) -> Response:
        waiting = [] if template == "login.html" else await self._reading.methods.engine.approvals(BADGE_LIMIT)
        told = {
            "title": title,
            "badge": len(waiting),
            "badge_limit": BADGE_LIMIT,
            "user": self._user,
            "has_token": self._token is not None,
            "actions": ACTIONS,
            "live": None,
        }
        # In a thread: a large page takes a while to make.
        text = await asyncio.to_thread(self._templates.get_template(template).render, told | more)
        return HTMLResponse(text.encode(errors="replace"), http)

    async def sessions(self, request: Request) -> Response:
        query = dict(request.query_params)
        prefix, status = query.get("prefix", "").strip(), query.get("status", "").upper()
        limit = api.number(query, "limit", SHOWN_SESSIONS, SESSIONS_LIMIT)
        found = await self._reading.sessions(prefix, status, limit)
        rows = [each | _counted(each) | {"waits": waits_for(each)} for each in found]
        more = len(found) == limit < SESSIONS_LIMIT
        return await self.show(
            "sessions.html",
            "Sessions",
            live="",
            rows=rows,
            states=STATES,
            prefix=prefix,
            status=status,
            more=link("/", prefix=prefix, status=status, limit=min(limit * 4, SESSIONS_LIMIT)) if more else "",
        )

    async def session(self, request: Request) -> Response:
        query = dict(request.query_params)
        session_id = api.needed(query, "id").removesuffix("/")
        limit = api.number(query, "limit", SHOWN_EXECUTIONS, COURSE_LIMIT)
        before = api.number(query, "before", NO_END, NO_END)
        found = await self._reading.session(session_id)
        course = await self._reading.course(f"{session_id}/", before, limit)
        histories = course["executions"]
        asked = {each["execution_id"]: each for each in await self._asked(histories)}
        now_ms = time.time_ns() // 1_000_000
        waiting = {each["execution_id"]: waits(each, asked, now_ms) for each in histories}
        drawn = await asyncio.to_thread(drawing.timeline, histories, waiting, now_ms, f"{session_id}/")
        if course["before"] is not None or before != NO_END:
            for row in drawn["rows"]:
                row["turn"] = None  # of which number it is cannot be told
        trouble = [
            {"execution_id": each["execution_id"], "code": each["error_code"], "error": each["error"] or ""}
            for each in histories
            if each["error_code"] in ("TOOL_ERROR", "REJECTED", "OUTCOME_UNKNOWN")
        ]
        return await self.show(
            "session.html",
            session_id,
            live=session_id,
            session=found,
            counted=_counted(found),
            waits=waits_for(found),
            question=question(histories),
            answer=_answer_of(await self._reading.answer(found)),
            drawn=drawn,
            asked=list(asked.values()),
            trouble=trouble,
            earlier=link("/session", id=session_id, before=course["before"]) if course["before"] else "",
            latest=link("/session", id=session_id) if before != NO_END else "",
        )

    async def execution(self, request: Request) -> Response:
        execution_id = api.needed(dict(request.query_params), "id")
        history = await self._reading.execution(execution_id)
        story, hidden = Story(history), items.left_out(history)
        began_ms = history["created_at_ms"]
        events = [
            {"offset": offset(each["at_ms"] - began_ms).strip(), "at_ms": each["at_ms"], "text": story.tell(each)}
            for each in history["events"]
            if each["node_id"] not in hidden
        ]
        history["outputs"] = {name: cut for name, cut in history["outputs"].items() if name not in hidden}
        now_ms = time.time_ns() // 1_000_000
        asked = [each for each in await self._asked([history]) if each["execution_id"] == execution_id]
        waiting = waits(history, {each["execution_id"]: each for each in asked}, now_ms)
        return await self.show(
            "execution.html",
            execution_id,
            live=session_of(execution_id),
            history=history,
            what=what_text(history["labels"]),
            session_id=session_of(execution_id),
            events=events,
            left_out=items.told(len(hidden)) if hidden else "",
            waits=waiting,
            asked=asked,
            is_open=history["status"] in OPEN,
        )

    async def _asked(self, histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
        waiting = {each["execution_id"] for each in histories if each["status"] == "WAITING"}
        if not waiting:
            return []
        return [each for each in await self._reading.approvals() if each["execution_id"] in waiting]

    async def approvals(self, request: Request) -> Response:
        found = await self._reading.approvals()
        return await self.show("approvals.html", "Approvals", live="", asked=found)

    async def unknown(self, request: Request) -> Response:
        found = await self._reading.unknown()
        rows = [each | {"what": what_text(each["labels"]), "node_id": _failed_node(each)} for each in found]
        return await self.show("unknown.html", "Unknown outcomes", live="", rows=rows)

    async def workers(self, request: Request) -> Response:
        return await self.show("workers.html", "Workers and queue", live="", **await self._reading.server())

    async def workflows(self, request: Request) -> Response:
        found: dict[str, list[dict[str, Any]]] = {}
        for each in await self._reading.workflows():
            found.setdefault(each["workflow_id"], []).append(each)
        return await self.show("workflows.html", "Workflows", live="", workflows=found)

    async def workflow(self, request: Request) -> Response:
        query = dict(request.query_params)
        workflow_id = api.needed(query, "id")
        versions = await self._reading.workflows(workflow_id)
        if not versions:
            raise NotFound(f"No workflow {workflow_id!r} is registered. See which are with: nexum versions")
        shown = await self._reading.definition(workflow_id, query.get("version", ""))
        hashes = [each["version_hash"] for each in versions]
        position = hashes.index(shown.version_hash) if shown.version_hash in hashes else 0
        old = query.get("old") or (hashes[position + 1] if position + 1 < len(hashes) else "")
        change = await self._reading.difference(workflow_id, old, shown.version_hash) if old else None
        return await self.show(
            "workflow.html",
            workflow_id,
            versions=versions,
            shown=shown,
            drawn=await asyncio.to_thread(drawing.graph, shown.ir_json),
            change=change,
            node_text=node_text,
        )

    def _does(self, action: Action) -> Any:
        async def do(request: Request) -> Response:
            form = parse_qs((await api.body_of(request)).decode(errors="replace"), keep_blank_values=True)
            given: dict[str, Any] = {name: values[-1].replace("\r\n", "\n") for name, values in form.items()}
            back = given.pop("back", "/")
            way = given.pop("way", None)  # of the ways to settle, the one that was chosen
            if action.name == "resolve":
                given = {name: text for name, text in given.items() if name in ("execution_id", "node_id", way)}
                if way not in ("result", "failed", "retry"):
                    raise InvalidRequest("Say one of these: result, failed, retry.")
                given.setdefault(way, "")
                if way == "result" and not given["result"]:
                    raise InvalidRequest("Say what the result is: it is empty.")
            flags = {field.name for field in action.fields if field.kind == "flag"}
            given = {name: True if name in flags else text for name, text in given.items() if name in flags or text}
            if way == "retry":
                given["retry"] = True
            said = await action.run(self._reading, checked(action, given))
            command = action.command(given)
            where = back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"
            if action.name == "fork":
                where = link("/session", id=given["new"])
            return await self.show("done.html", action.label, said=said, command=command, back=where)

        return do

    async def login(self, request: Request) -> Response:
        if self._token is None:
            return RedirectResponse("/", 303)
        refused = ""
        if request.method == "POST":
            form = parse_qs((await api.body_of(request)).decode(errors="replace"))
            given = form.get("token", [""])[-1].strip()
            if hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
                answer: Response = RedirectResponse("/", 303)
                answer.set_cookie(
                    cookie_name(request.scope),
                    cookie_of(self._token),
                    max_age=COOKIE_SECONDS,
                    httponly=True,
                    samesite="strict",
                    secure=request.url.scheme == "https",
                )
                return answer
            await asyncio.sleep(0.5)  # who guesses, guesses slowly
            refused = "That is not the token of this server."
        return await self.show("login.html", "Log in", http=401 if refused else 200, refused=refused)

    async def logout(self, request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(cookie_name(request.scope), httponly=True, samesite="strict")
        return answer

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("There is no such file.\n", 404)
        return FileResponse(FOLDER / "static" / name, media_type=STATIC[name])

    async def refused(self, request: Request, error: Exception) -> Response:
        status, code = api.CODES[next(each for each in api.CODES if isinstance(error, each))]
        said = str(error) or wire.NO_MEMORY
        try:
            return await self.show("refused.html", "That cannot be done", http=status, said=said, code=code)
        except api.TOLD:
            return PlainTextResponse(f"{said}\n", status)


def _counted(session: dict[str, Any]) -> dict[str, int]:
    return dict(zip(("runs", "turns", "calls", "tokens"), counts(session), strict=True))


def _answer_of(text: str | None) -> dict[str, Any] | None:
    """`{"text" or "value", "error"}` of what is recorded of a run's end."""
    if text is None or len(text) > 256 * 1024:
        return None
    recorded = json.loads(text)
    if not isinstance(recorded, dict):
        return None
    result, error = recorded.get("result"), recorded.get("error")
    if error:
        return {"error": str(error), "text": None, "value": None}
    if isinstance(result, str):
        return {"error": None, "text": result, "value": None}
    if result is None:
        return None
    told = wire.json_text(result)
    return {"error": None, "text": None, "value": {"json": told, "chars": len(told), "is_whole": True}}


def _failed_node(history: dict[str, Any]) -> str:
    """At which node it is unknown what happened; "" where the server can tell by itself."""
    nodes = [each["node_id"] for each in history["events"] if each["type"] in ("AttemptFailed", "LeaseExpired")]
    return str(nodes[-1]) if nodes else ""
