"""Signatures of webhooks, by the Standard Webhooks specification. Owns them and how a secret looks.
Sends nothing (webhooks.py).
"""

import base64
import binascii
import hashlib
import hmac
from contextlib import suppress

_PREFIX = "whsec_"


def check_secret(value: str) -> str:
    """Returns the secret. Raises ValueError unless it is `whsec_` and base64 of 24 to 64 bytes."""
    with suppress(binascii.Error):
        encoded = value.removeprefix(_PREFIX)
        if value.startswith(_PREFIX) and 24 <= len(base64.b64decode(encoded, validate=True)) <= 64:
            return value
    raise ValueError(
        "whsec_ and base64 of 24 to 64 bytes are needed; "
        "make one with: echo whsec_$(openssl rand -base64 32)"
    )


def signature(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """Returns the header `webhook-signature`."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{event_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
