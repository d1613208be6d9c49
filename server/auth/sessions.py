"""Who is logged in to the console. Owns the signed cookie, which holds the number of a key and
nothing else; whether that key is still in force is access.py's to say.
"""

from urllib.parse import urlencode

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response

from guard.store.keys import Key

CONSOLE = "/console"
LOGIN = f"{CONSOLE}/login"
FLAGS = f"{CONSOLE}/flags?status=open"
"""What is to be reviewed, where the console begins."""

_COOKIE = "setback_session"
_LASTS_S = 12 * 60 * 60


class Sessions:
    """Makes and reads the cookies of all processes that share `secret`."""

    def __init__(self, secret: str) -> None:
        self._serializer = URLSafeTimedSerializer(secret, salt="setback.console")

    def begin(self, request: HTTPConnection, response: Response, key: Key) -> None:
        """Logs the browser in that gets the response."""
        response.set_cookie(
            _COOKIE,
            self._serializer.dumps(key.id),
            max_age=_LASTS_S,
            path=at(request, CONSOLE),
            httponly=True,
            # A link from an alert may open a page; what other sites' pages send is refused anyway.
            samesite="lax",
            secure=request.scope["scheme"] == "https",
        )

    def end(self, request: HTTPConnection, response: Response) -> None:
        """Logs it out."""
        response.delete_cookie(_COOKIE, path=at(request, CONSOLE))

    def key_id(self, request: HTTPConnection) -> int | None:
        """The number of the key that the browser was logged in with, for twelve hours."""
        try:
            number = self._serializer.loads(request.cookies.get(_COOKIE, ""), max_age=_LASTS_S)
        except BadSignature:
            return None
        return int(number)


def in_console(path: str) -> bool:
    """Whether that path, below where the application is mounted, is one of the console's."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def at(request: HTTPConnection, path: str) -> str:
    """A path of ours as the browser has to call it, below where the application is mounted."""
    return f"{request.scope.get('root_path', '')}{path}"


def to_login(request: HTTPConnection) -> Response:
    """Sends a browser to log in, and back to the page that it asked for."""
    login = at(request, LOGIN)
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"hx-redirect": login})
    if request.scope.get("method") != "GET":
        return RedirectResponse(login, status_code=303)
    query = request.scope["query_string"].decode("latin-1")
    target = f"{request.scope['path']}{f'?{query}' if query else ''}"
    return RedirectResponse(f"{login}?{urlencode({'next': target})}", status_code=303)
