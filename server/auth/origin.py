"""Cross-site request protection. A browser sends its user's session, and reaches this machine, on
behalf of any page. Owns the check of where a request comes from, and the security headers of the
console's pages. Does not know keys (access.py).
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

SAFE_METHODS = frozenset({"GET", "HEAD"})
_SAME_SITE = frozenset({"same-origin", "none"})
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
    """Whether a host name or address is this machine's loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_cross_site(method: str, headers: Headers, public_url: str | None = None) -> bool:
    """Whether another site's page makes this request. Following a link does not count.

    public_url: the origin that browsers see, if a proxy in front rewrites the Host header.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in _SAME_SITE and not _is_link(method, headers)
    origin = headers.get("origin")
    # Not a browser, or one too old to send sec-fetch-site.
    if origin is None or (public_url is not None and origin == public_url):
        return False
    return origin.partition("://")[2] != headers.get("host")


def has_foreign_host(headers: Headers) -> bool:
    """Whether the Host header is a name that someone could have pointed at this machine."""
    try:
        return not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:
        return True


def _is_link(method: str, headers: Headers) -> bool:
    opens_page = headers.get("sec-fetch-mode") == "navigate"
    return method in SAFE_METHODS and opens_page and headers.get("sec-fetch-dest") == "document"
