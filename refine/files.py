"""Files that are whole or not there. Owns how they are written; knows no contents."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes beside, flushes to disk and renames, so that a kill leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
