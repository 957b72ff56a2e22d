"""Who may ask what: before any page is made.

A browser is full of pages of strangers, and each of them can send requests to this server. So:

- A request names this server (`Host`), or a name that leads here by somebody else's DNS would do.
- What acts comes from a page of this server (`Origin`, `Sec-Fetch-Site`), or from no page at all, as curl's.
- Nothing tells a browser that other pages may read an answer, and no other page may show this one in a frame.
- With a token: a browser has the cookie that the login gives, anything else the token itself.
- Without one, on loopback: the connection is of this server's own user, where the system can tell.
"""

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from nexum_runtime import wire

READS = ("GET", "HEAD")
OPEN_TO_ALL = ("/healthz", "/readyz")  # whoever looks after processes has no token, and learns nothing
BEFORE_LOGIN = ("/login", "/static/")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # to nobody else; without any, a form's Origin would be null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """ASGI: lets requests through to `app`, or answers them."""

    def __init__(
        self,
        app: Any,
        *,
        token: str | None,
        host: str,
        why_not: Callable[[tuple[str, int], tuple[str, int]], str] | None,
    ) -> None:
        self._app = app
        self._token, self._why_not = token, why_not
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        path, is_read = scope["path"], scope["method"] in READS

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told[name] = value
                if not path.startswith("/static/"):
                    told["Cache-Control"] = "no-store"
            await send(message)

        refusal = self._refusal(scope, headers, path, is_read)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Any, headers: Headers, path: str, is_read: bool) -> Response | None:
        if path in OPEN_TO_ALL and is_read:
            return None
        if not self._is_named(headers.get("host", "")):
            return _refused(path, 421, "FAILED_PRECONDITION", "This Nexum server is not known by that name. Use its IP "
                            "address, or localhost.")  # fmt: skip
        if not is_read and not comes_from_here(headers):
            return _refused(path, 403, "PERMISSION_DENIED", "Another page has sent this. Nothing was done.")
        if path.startswith("/api/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return _refused(path, 403, "PERMISSION_DENIED", "Another page has asked for this.")
        if self._why_not is not None:
            ends = [scope.get(end) for end in ("client", "server")]
            gone = "Whoever asked has gone."
            if reason := self._why_not(ends[0][:2], ends[1][:2]) if all(ends) else gone:
                return _refused(path, 403, "PERMISSION_DENIED", reason)
        if self._token is None or path.startswith(BEFORE_LOGIN) or self._has_token(scope, headers):
            return None
        if is_read and not path.startswith("/api/") and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        told = "This Nexum server demands its token: Authorization: Bearer …"
        refused = _refused(path, 401, "UNAUTHENTICATED", told)
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused

    def _is_named(self, host: str) -> bool:
        """With a token any name will do: who has it says so, and a browser has the cookie of another name."""
        if self._token is not None:
            return bool(host)
        name = (urlsplit(f"//{host}").hostname or "").lower() if host and not set(host) & set("/@?#\\") else ""
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_token(self, scope: Any, headers: Headers) -> bool:
        assert self._token is not None
        if wire.bears(headers.get("authorization", ""), self._token):
            return True
        try:
            cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(cookie_name(scope))
        return found is not None and hmac.compare_digest(found.value.encode(), cookie_of(self._token).encode())


def comes_from_here(headers: Headers) -> bool:
    """Whether a page of this server has sent a request, or none at all."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def cookie_name(scope: Any) -> str:
    """With the port: browsers send a cookie to every port of a host."""
    return f"nexum-{scope['server'][1]}"


def cookie_of(token: str) -> str:
    """What says that its bearer has the token, and is not the token."""
    return hmac.new(token.encode(), b"the page of this Nexum server", hashlib.sha256).hexdigest()


def _refused(path: str, status: int, code: str, message: str) -> Response:
    if path.startswith("/api/"):
        return JSONResponse({"code": code, "message": message}, status)
    return PlainTextResponse(f"{message}\n", status)
