"""How the console's pages are made: templates, and errors as pages. Owns what all pages share; what
is on each is told by flag_pages.py, loop_pages.py and traffic_page.py.

Templates escape every value, and scripts and styles come from our own files alone: auth/origin.py
has the headers that say so.
"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from guard.errors import GuardError
from guard.verdict import CATEGORIES
from server.auth.access import caller_of, role_of_caller
from server.auth.sessions import in_console, mounted_path
from server.errors import STATUS, BadRequest, on_http_error
from server.routes.checked import bad_request
from server.routes.open import path_of

_LARGEST_FORM = 2 * 1024**2
"""In bytes; the longest corrected answer has 100,000 characters."""
_HIGH, _MEDIUM = 0.75, 0.4

_templates = Environment(
    loader=PackageLoader("server.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(request: Request, template: str, /, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page or a part of one, for who is calling."""
    html = _templates.get_template(template).render(
        values,
        base=mounted_path(request, ""),
        caller=caller_of(request),
        role=role_of_caller(request),
    )
    # What other encodings bring in may be no Unicode.
    return HTMLResponse(html.encode("utf-8", "replace"), status)


def see(request: Request, path: str) -> RedirectResponse:
    """Sends the browser to another page, after a form."""
    return RedirectResponse(mounted_path(request, path), 303)


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was filled in of a form: its empty fields are none."""
    return {name: value for name, value in fields.items() if value != ""}


class PageRoute(APIRoute):
    """A route whose errors become pages. Use as an APIRouter's route_class."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute.get_route_handler."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            if _too_large(request):
                return _failed(request, 413, "No form here is as long as that.")
            try:
                return await handle(request)
            except GuardError as error:
                return _failed(request, STATUS[type(error)], str(error))
            except BadRequest as error:
                return _failed(request, error.status, error.message)
            except RequestValidationError as error:
                if error.errors()[0]["loc"][0] == "path":
                    return _failed(request, 404, "There is nothing of that number or name.")
                return _failed(request, 400, bad_request(error).message)

        return told


async def on_refused(request: Request, error: Exception) -> Response:
    """FastAPI handler for what the router itself refuses: a page in the console, JSON elsewhere."""
    if not in_console(path_of(request.scope)):
        return await on_http_error(request, error)
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.scope['path']}: {error.detail}."
    return _failed(request, error.status_code, message)


def _too_large(request: Request) -> bool:
    """Whether a body may be longer than any form; anybody may send one to the log-in."""
    length = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or int(length) > _LARGEST_FORM


def _failed(request: Request, status: int, message: str) -> Response:
    title = HTTPStatus(status).phrase
    return page(request, "error.html", status=status, title=title, message=message)


def _when(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if time else ""


def _took(start: datetime, end: datetime) -> str:
    seconds = int((end - start).total_seconds())
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def _level(score: float) -> str:
    return "high" if score >= _HIGH else "medium" if score >= _MEDIUM else "low"


_templates.filters |= {"when": _when, "level": _level}
_templates.globals |= {"categories": CATEGORIES, "took": _took}
