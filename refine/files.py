"""Files. Owns atomic writing, reading by line and the files of a report. Knows no contents."""

import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 file, with or without a byte-order mark. Raises OSError or
    UnicodeDecodeError.

    Lines end at line feeds only: JSON may contain U+2028, U+2029 and U+0085, where `splitlines()`
    would split it.
    """
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a temporary file, flushes it to disk and renames it, so no partial file remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_report(
    folder: Path, name: str, *, values: Mapping[str, Any], picture: bytes, page: str
) -> list[Path]:
    """Writes a report's values as JSON, its picture (PNG) and its page (HTML), all by that name,
    and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "png", "html")]
    write_atomically(paths[0], json.dumps(values, indent=1) + "\n")
    paths[1].write_bytes(picture)
    write_atomically(paths[2], page)
    return paths


def cache_key(about: Sequence[Any]) -> str:
    """Returns a file name's part, 16 hex digits, that changes with any of the JSON values."""
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


async def cached(path: Path, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
    """Returns the result of `make`, cached as JSON in `path`."""
    stored: TypeAdapter[T] = TypeAdapter(kind)
    # Only commands call this, and they have nothing else to do meanwhile.
    if path.is_file():  # noqa: ASYNC240
        return stored.validate_json(path.read_bytes())  # noqa: ASYNC240
    result = await make()
    write_atomically(path, stored.dump_json(result, indent=1).decode())
    return result
