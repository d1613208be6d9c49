"""Rendering of the console's pages: templates, and errors as pages. Owns what all pages share.
flag_pages.py, loop_pages.py and traffic_page.py define the pages.

Templates escape every value. Scripts and styles come from our own files only, as the headers in
auth/origin.py demand.
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

_MAX_FORM_BYTES = 2 * 1024**2
"""Enough for the longest corrected answer, which has 100,000 characters."""
_HIGH, _MEDIUM = 0.75, 0.4

_templates = Environment(
    loader=PackageLoader("server.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(request: Request, template: str, /, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Renders a page, or a part of one, for the caller."""
    html = _templates.get_template(template).render(
        values,
        base=mounted_path(request, ""),
        caller=caller_of(request),
        role=role_of_caller(request),
    )
    # Text in other encodings may hold invalid Unicode.
    return HTMLResponse(html.encode("utf-8", "replace"), status)


def redirect(request: Request, path: str) -> RedirectResponse:
    """Redirects the browser to another page after a form."""
    return RedirectResponse(mounted_path(request, path), 303)


def without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a form that are not empty."""
    return {name: value for name, value in fields.items() if value != ""}


class PageRoute(APIRoute):
    """A route whose errors become pages. Use it as an APIRouter's route_class."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute.get_route_handler."""
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            if _too_large(request):
                return _error_page(request, 413, "The form is too large.")
            try:
                return await handle(request)
            except GuardError as error:
                return _error_page(request, STATUS[type(error)], str(error))
            except BadRequest as error:
                return _error_page(request, error.status, error.message)
            except RequestValidationError as error:
                if error.errors()[0]["loc"][0] == "path":
                    return _error_page(request, 404, "There is no such page.")
                return _error_page(request, 400, bad_request(error).message)

        return handle_errors


async def on_refused(request: Request, error: Exception) -> Response:
    """FastAPI handler for the router's refusals: a page in the console, JSON elsewhere."""
    if not in_console(path_of(request.scope)):
        return await on_http_error(request, error)
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.scope['path']}: {error.detail}."
    return _error_page(request, error.status_code, message)


def _too_large(request: Request) -> bool:
    """Whether a body may exceed the largest form. Anyone can send one to the login page."""
    length = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or int(length) > _MAX_FORM_BYTES


def _error_page(request: Request, status: int, message: str) -> Response:
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
