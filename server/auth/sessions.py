"""Console sessions. Owns the signed cookie, which holds the number of a key and nothing else. Does
not know whether that key is still in force (access.py).
"""

from urllib.parse import urlencode

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response

from guard.store.keys import Key

CONSOLE = "/console"
LOGIN = f"{CONSOLE}/login"
FLAGS = f"{CONSOLE}/flags?status=open"
"""The console's start page: the flags that are open for review."""

_COOKIE = "setback_session"
_MAX_AGE_S = 12 * 60 * 60


class Sessions:
    """Creates and reads the cookies of all processes that share `secret`.

    public_url: the origin that browsers see, if a proxy hides it.
    """

    def __init__(self, secret: str, public_url: str | None = None) -> None:
        self._is_public_https = bool(public_url and public_url.startswith("https:"))
        self._serializer = URLSafeTimedSerializer(secret, salt="setback.console")

    def begin(self, request: HTTPConnection, response: Response, key: Key) -> None:
        """Logs the browser in."""
        response.set_cookie(
            _COOKIE,
            self._serializer.dumps(key.id),
            max_age=_MAX_AGE_S,
            path=mounted_path(request, CONSOLE),
            httponly=True,
            # Lax, so that a link from an alert opens a page; cross-site forms are refused anyway.
            samesite="lax",
            secure=self._is_public_https or request.scope["scheme"] == "https",
        )

    def end(self, request: HTTPConnection, response: Response) -> None:
        """Logs the browser out."""
        response.delete_cookie(_COOKIE, path=mounted_path(request, CONSOLE))

    def key_id(self, request: HTTPConnection) -> int | None:
        """Returns the number of the key that the browser logged in with, for twelve hours."""
        try:
            number = self._serializer.loads(request.cookies.get(_COOKIE, ""), max_age=_MAX_AGE_S)
        except BadSignature:
            return None
        return int(number)


def in_console(path: str) -> bool:
    """Whether a path, without the mount prefix, belongs to the console."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def mounted_path(request: HTTPConnection, path: str) -> str:
    """Returns a path with the prefix under which the application is mounted."""
    return f"{request.scope.get('root_path', '')}{path}"


def redirect_to_login(request: HTTPConnection) -> Response:
    """Redirects a browser to the login page, which leads back to the requested page."""
    login = mounted_path(request, LOGIN)
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"hx-redirect": login})
    if request.scope.get("method") != "GET":
        return RedirectResponse(login, status_code=303)
    query = request.scope["query_string"].decode("latin-1")
    target = f"{request.scope['path']}{f'?{query}' if query else ''}"
    return RedirectResponse(f"{login}?{urlencode({'next': target})}", status_code=303)
