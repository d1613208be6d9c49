"""Criteria that ship with Setback and that a policy takes by name. Owns where they are.
Their fields are those of any criterion (criterion_file.py).
"""

import tomllib
from functools import cache
from importlib.resources import files

from guard.policy_fields import Fields, Table

_FILE = "shipped_criteria.toml"


def with_shipped(fields: Fields) -> Table:
    """Returns a criterion's fields, over those of the shipped criterion that it names. Raises
    PolicyInvalid for an unknown name."""
    if "shipped" not in fields.table:
        return fields.table
    name = fields.string("shipped", None)
    if name not in shipped():
        known = ", ".join(f'"{one}"' for one in shipped())
        raise fields.invalid("shipped", f"{name!r} is not one of {known}")
    own = {key: value for key, value in fields.table.items() if key != "shipped"}
    return {**shipped()[name], **own}


@cache
def shipped() -> dict[str, Table]:
    """Returns the fields of each shipped criterion."""
    return tomllib.loads(files("guard").joinpath(_FILE).read_text("utf-8"))
