"""TLS to PostgreSQL: what the options of a database URL ask for. Owns their checks and the context
for the system's roots. Everything else about TLS is asyncpg's, which reads libpq's options.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Any

SYSTEM = "system"
"""The value of sslrootcert that stands for the system's root certificates."""

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_NOT_WITH_SYSTEM = ("sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version")
_CONTEXT_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword")


def check_tls(options: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the option and the fix, for options that could not do what
    they say."""
    for name in _FILES:
        path = str(options.get(name, SYSTEM))
        if path != SYSTEM and not os.access(path, os.R_OK):
            raise ValueError(f"{name} in the database URL names a file that cannot be read: {path}")
    if options.get("sslrootcert") == SYSTEM:
        for name in _NOT_WITH_SYSTEM:
            if name in options:
                raise ValueError(
                    f"{name} in the database URL does not work with sslrootcert=system; remove it, "
                    "or name a file of root certificates"
                )
    # The driver cannot bind channels. A verified server gives the same protection.
    if options.get("channel_binding") == "require" and options.get("sslmode") != "verify-full":
        raise ValueError(
            "channel_binding=require in the database URL is not supported by the driver; verify "
            "the server instead, with sslmode=verify-full and sslrootcert=system or a file"
        )


def take_system_context(options: dict[str, str]) -> ssl.SSLContext:
    """Removes the options that the context takes over, and returns a context that verifies the
    server against the system's roots and its host name."""
    taken = {name: options.pop(name) for name in _CONTEXT_OPTIONS if name in options}
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    if "sslcert" in taken:
        context.load_cert_chain(
            taken["sslcert"], taken.get("sslkey"), lambda: taken.get("sslpassword", "")
        )
    return context
