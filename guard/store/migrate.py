"""Migrates the database, and checks that it is at the newest schema. Owns how Alembic is run, also
from an installed wheel. The revisions are in migrations/.
"""

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection

from guard.errors import StoreUnavailable
from guard.store import database


def alembic_config(url: URL) -> Config:
    """Returns the configuration for Alembic's commands on the database at `url`."""
    config = Config()
    folder = str(files("migrations"))
    # Alembic reads % as the start of an interpolation.
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade(url: URL) -> str:
    """Migrates to the newest revision and returns its name. Creates SQLite's folder and file.

    Processes may call it at the same time: one migrates, the others wait. Runs its own event loop,
    so do not call it from a running one. Raises StoreUnavailable.
    """
    database.make_folder(url)
    config = alembic_config(url)
    try:
        with database.store_errors(url):
            command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnavailable(f"The database cannot be migrated: {error}. {_NEWER}") from error
    return ", ".join(ScriptDirectory.from_config(config).get_heads())


def require_newest(connection: Connection) -> None:
    """Raises StoreUnavailable, naming the fix, unless the schema is at the newest revision."""
    current = set(MigrationContext.configure(connection).get_current_heads())
    scripts = ScriptDirectory.from_config(alembic_config(connection.engine.url))
    if current == set(scripts.get_heads()):
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if current <= known:
        raise StoreUnavailable("The database is not migrated; run `setback db upgrade`")
    raise StoreUnavailable(f"The database is at revision {', '.join(current)}. {_NEWER}")


_NEWER = "A newer Setback may have migrated it: install that version, or restore a backup"
