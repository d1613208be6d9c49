"""/console/login, logout and the static files. Owns these routes. The session cookie is defined in
auth/sessions.py."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from guard.store.keys import Key
from server.auth.access import Access
from server.auth.sessions import CONSOLE, FLAGS, LOGIN, Sessions, mounted_path
from server.console.view import PageRoute, page, redirect

_STATIC = Path(__file__).with_name("static")
_FILES = {path.name: path for path in sorted(_STATIC.iterdir())}

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/console")
async def home(request: Request) -> Response:
    """Redirects to the review queue."""
    return redirect(request, FLAGS)


@router.get("/console/login")
async def login_page(request: Request, next: str = "") -> Response:
    """Asks for a key, unless none is needed."""
    if _access(request).open:
        return redirect(request, FLAGS)
    return page(request, "login.html", next=next, problem=None)


@router.post("/console/login")
async def login(
    request: Request, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = ""
) -> Response:
    """Logs in a reviewer, and goes to the page that was requested."""
    match = _access(request).find(key.strip())
    problem = _problem(match)
    if match is None or problem:
        return page(request, "login.html", status=401, next=next, problem=problem)
    # Only to our own pages: anyone may have made the link to this one.
    ours = next.startswith(f"{mounted_path(request, CONSOLE)}/")
    response = RedirectResponse(next, 303) if ours else redirect(request, FLAGS)
    _sessions(request).begin(request, response, match)
    return response


@router.post("/console/logout")
async def logout(request: Request) -> Response:
    """Logs the browser out."""
    response = redirect(request, LOGIN)
    _sessions(request).end(request, response)
    return response


@router.get("/console/static/{name}")
async def static(name: str) -> Response:
    """Serves a style sheet, script or image."""
    if name not in _FILES:
        return Response(status_code=404)
    return FileResponse(_FILES[name], headers={"cache-control": "no-cache"})


def _problem(key: Key | None) -> str | None:
    if key is None:
        return "No valid key has this secret."
    if not key.may("review"):
        return f"This key has the role {key.role}; the console needs review or admin."
    return None


def _access(request: Request) -> Access:
    access: Access = request.app.state.setback.access
    return access


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.setback.sessions
    return sessions
