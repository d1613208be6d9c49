"""Migrated SQLite files for tests, each a copy of one that was migrated once, because a migration
takes a tenth of a second. The copies have the same secrets. Tests of migrations run them
themselves.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL

from guard.store import migrate
from guard.store.url import parse_url


def migrated_file(path: Path) -> URL:
    """Makes a migrated database and returns its URL. In a running event loop, call it in a
    thread."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_migrated_bytes())
    return parse_url(f"sqlite:///{path}")


@cache
def _migrated_bytes() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "migrated.db"
        migrate.upgrade(parse_url(f"sqlite:///{path}"))
        return path.read_bytes()
