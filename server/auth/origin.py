"""Keeps other sites' pages away from what operators may do: a browser sends its user's session, or
reaches this machine, for whichever page asks it to. Owns that check, and the headers that tell a
browser what the console's pages may do and who may show them; keys are access.py's.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

SAFE_METHODS = frozenset({"GET", "HEAD"})
_OWN = frozenset({"same-origin", "none"})
PAGE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine as it sees itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def from_elsewhere(method: str, headers: Headers) -> bool:
    """Whether another site's page makes this request. Following a link from it is no such thing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in _OWN and not _is_link(method, headers)
    origin = headers.get("origin")
    # Not a browser, or one so old that it tells nothing of a plain GET.
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def by_another_name(headers: Headers) -> bool:
    """Whether the server is called by a name that anybody could have pointed at this machine."""
    try:
        return not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:
        return True


def _is_link(method: str, headers: Headers) -> bool:
    opens_page = headers.get("sec-fetch-mode") == "navigate"
    return method in SAFE_METHODS and opens_page and headers.get("sec-fetch-dest") == "document"
