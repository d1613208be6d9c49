"""Makes any value storable in both databases, so that no flag is lost to unusual text. Owns the
replacements: PostgreSQL rejects NUL, both reject lone surrogates, JSON has no NaN or infinity.
"""

import math
from collections.abc import Mapping
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(value: object) -> Any:
    """Returns `value` as plain JSON types, with what cannot be stored replaced."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return _text(str(value))


def _text(text: str) -> str:
    encoded = text.replace("\0", REPLACEMENT).encode("utf-16", "surrogatepass")
    return encoded.decode("utf-16", "replace")
