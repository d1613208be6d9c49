"""Makes docs/settings.md from the settings: `make docs`. Owns the page's words around the tables.
Names, defaults and meanings come from server/settings.py and refine/options.py.
"""

from enum import Enum
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sqlalchemy import URL

from refine.options import RefineOptions
from server.settings import PREFIX, Settings

PAGE = Path(__file__).parents[1] / "docs/settings.md"

_TEXT = """# Settings

`make docs` writes this page from `server/settings.py` and `refine/options.py`. Do not edit it.

A setting comes from one of three places. The first that names it wins:

1. an option of `setback serve`: `--stream-mode` for `SETBACK_STREAM_MODE`;
2. a variable in the environment;
3. a key in `setback.toml` in the working folder: `stream_mode`. `SETBACK_CONFIG` names another
   file.

For the database, `DATABASE_URL` is read after `SETBACK_DATABASE_URL` and before the file.
[operations.md](operations.md#databases) has the forms of database URLs. `SETBACK_USER_SALT` is a
secret and has no option. An empty variable counts as unset. The file may begin with a byte-order
mark. A wrong value or an unknown key ends the command with a message that names it.
`setback doctor` names variables that begin with `SETBACK_` and are not settings.

The model and vLLM's own options are arguments of `setback serve`, not settings.

## The server

{server}

## The refine job

The refine job reads the same variables and the same file, there from the table `[refine]`:
`min_flags` under `[refine]` is `SETBACK_REFINE_MIN_FLAGS`. `setback serve` has no options for them.

{refine}
"""


def page() -> str:
    """The whole page."""
    return _TEXT.format(
        server=_table(PREFIX, Settings), refine=_table(f"{PREFIX}REFINE_", RefineOptions)
    )


def _table(prefix: str, model: type[BaseModel]) -> str:
    rows = [
        f"| `{prefix}{name.upper()}` | {_default(field.default)} | {_meaning(field)} |"
        for name, field in model.model_fields.items()
        if field.annotation is not RefineOptions
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _default(value: object) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, URL):
        plain = value.set(drivername=value.get_backend_name())
        return f"`{plain.render_as_string(hide_password=True)}`"
    return f"`{value}`"


def _meaning(field: FieldInfo) -> str:
    assert field.description, "every setting has a docstring"
    return " ".join(field.description.split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
