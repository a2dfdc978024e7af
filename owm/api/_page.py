"""The landing page: the live network, and a box to ask in. Plain files, nothing from elsewhere."""

from __future__ import annotations

from importlib import resources
from typing import Final

from quart import Blueprint, Response, request
from quart_trio.wrappers import TrioResponse

from owm.api._access import SESSION_COOKIE
from owm.api._gateway import Gateway
from owm.api.errors import NotFound

__all__ = ["page_routes"]

_FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SESSION_SECONDS: Final = 86_400


def page_routes(gateway: Gateway) -> Blueprint:
    """The page at / and its two files."""
    routes = Blueprint("page", __name__)
    folder = resources.files("owm.api") / "page"
    content = {name: (folder / name).read_bytes() for name in _FILES}

    def file(name: str) -> Response:
        response = TrioResponse(content[name], content_type=_FILES[name])
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response

    @routes.get("/")
    async def index() -> Response:
        response = file("index.html")
        response.set_cookie(
            SESSION_COOKIE,
            gateway.access.new_session(request),
            max_age=_SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.scheme == "https",
        )
        return response

    @routes.get("/page/<name>")
    async def asset(name: str) -> Response:
        if name not in _FILES or name == "index.html":
            raise NotFound("there is no such file")
        return file(name)

    return routes
