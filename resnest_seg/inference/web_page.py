"""The page at `/` of the HTTP service, on which a person labels a photo: one HTML, one JS and one CSS file.

It asks for nothing but what this service has, and its headers hold browsers to that. Clients that do not ask for HTML
get the error that an unknown address gets.
"""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
"""Address -> file in the folder page/."""

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def routes() -> list[Route]:
    """Return the routes of the page and its files, for a Starlette application."""
    from starlette.routing import Route

    folder = importlib.resources.files("resnest_seg.inference") / "page"
    contents = {address: (folder / name).read_bytes() for address, name in FILES.items()}

    async def answer(request: Request) -> Response:
        from starlette.exceptions import HTTPException
        from starlette.responses import Response

        name = FILES[request.url.path]
        if name.endswith(".html") and "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(404, "Not Found; there is a page for browsers (Accept: text/html)")
        kind = TYPES[name[name.rindex(".") :]]
        return Response(contents[request.url.path], media_type=kind, headers=HEADERS)

    return [Route(address, answer) for address in FILES]
