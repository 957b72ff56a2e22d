"""The application, with all that takes a while to import: see `listening`."""

import getpass
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.model.metrics import CONTENT_TYPE
from nexum_runtime.server.web import api
from nexum_runtime.server.web.feed import Feed
from nexum_runtime.server.web.gate import Gate
from nexum_runtime.server.web.pages import Pages
from nexum_runtime.server.web.reading import Reading


def application(
    methods: Methods,
    feed: Feed,
    *,
    token: str | None,
    host: str,
    is_for_own_user: bool,
    why_not: Callable[[tuple[str, int], tuple[str, int]], str] | None,
) -> Any:
    reading = Reading(methods)
    pages = Pages(reading, token, _user() if is_for_own_user else "")

    async def metrics(request: Request) -> Response:
        return Response(await methods.engine.measure(), headers={"Content-Type": CONTENT_TYPE})

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(request: Request) -> Response:
        if await methods.engine.is_ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", status_code=503)

    async def refused(request: Request, error: Exception) -> Response:
        return api.refused(error) if request.url.path.startswith("/api/") else await pages.refused(request, error)

    async def not_found(request: Request, error: Exception) -> Response:
        return api.not_found(request.url.path)

    app = Starlette(
        routes=[
            *pages.routes(),
            *api.routes(reading, feed),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/readyz", readiness, methods=["GET"]),
        ],
        exception_handlers={**dict.fromkeys(api.TOLD, refused), 404: not_found},
    )
    return Gate(app, token=token, host=host, why_not=why_not)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user that has no name
        return ""
