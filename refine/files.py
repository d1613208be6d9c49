"""Files of text: written whole or not at all, and read line by line. Knows no contents."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def read_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8, with or without a byte-order mark; raises OSError or
    UnicodeDecodeError.

    They end at line feeds only: JSON may hold U+2028, U+2029 and U+0085, at which `splitlines()`
    would cut it.
    """
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes beside, flushes to disk and renames, so that a kill leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


async def made_once(path: Path, kind: type[T], make: Callable[[], Awaitable[T]]) -> T:
    """What `make` returns, made once and kept as JSON in `path`."""
    stored: TypeAdapter[T] = TypeAdapter(kind)
    # Commands call this, which have nothing else to do meanwhile.
    if path.is_file():  # noqa: ASYNC240
        return stored.validate_json(path.read_bytes())  # noqa: ASYNC240
    made = await make()
    write_atomically(path, stored.dump_json(made, indent=1).decode())
    return made
