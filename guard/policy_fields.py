"""Typed access to the fields of a policy file, with errors that name the file, the line, the field
and the fix. Owns no field (policy_file.py, criterion_file.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from guard.errors import PolicyInvalid
from guard.toml_lines import line_of

Table = Mapping[str, object]


@dataclass(frozen=True)
class Fields:
    """One table of a policy file. Every method raises PolicyInvalid for a field of another type.

    source: where the text is from. text: the whole of it. place: the path to the table, empty for
    the file itself.
    """

    source: str
    text: str
    table: Table
    place: str = ""

    def refuse_unknown(self, known: Sequence[str]) -> None:
        """Raises PolicyInvalid for a field that is none of the known ones."""
        for key in self.table:
            if key not in known:
                raise self.invalid(key, f"unknown; remove it or use one of {', '.join(known)}")

    def string(self, key: str, inherited: str | None) -> str:
        """Returns a text; `inherited` where there is none, unless that is None."""
        if key not in self.table and inherited is not None:
            return inherited
        value = self.table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.invalid(key, f"{value!r} is not a text; write a sentence in quotes")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """Returns a list of texts, which is not empty."""
        value = self.table.get(key)
        if not isinstance(value, list) or not value:
            raise self.invalid(key, f"{value!r} is not a list of texts in quotes")
        for text in value:
            if not isinstance(text, str) or not text.strip():
                raise self.invalid(key, f"{text!r} is not a text in quotes")
        return tuple(value)

    def boolean(self, key: str, inherited: bool | None) -> bool:
        """Returns true or false; `inherited` where there is none, unless that is None."""
        value = self.table.get(key, inherited)
        if not isinstance(value, bool):
            raise self.invalid(key, f"{value!r} is neither true nor false")
        return value

    def child(self, key: str) -> "Fields":
        """Returns the table of that name, empty where there is none."""
        value = self.table.get(key, {})
        if not isinstance(value, dict):
            field = self.path(key)
            raise self.invalid(key, f"{value!r} is not a table; write it under [{field}]")
        return Fields(self.source, self.text, value, self.path(key))

    def children(self, key: str) -> Iterator["Fields"]:
        """Yields the tables of a list of tables."""
        tables, field = self.table.get(key, []), self.path(key)
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise self.invalid(
                key, f"{tables!r} is not a list of tables; write each under [[{field}]]"
            )
        for number, table in enumerate(tables):
            yield Fields(self.source, self.text, table, f"{field}[{number}]")

    def path(self, key: str) -> str:
        """Returns the path to a field, in quotes where it needs them."""
        quoted = key if key.replace("-", "").replace("_", "").isalnum() else f'"{key}"'
        return f"{self.place}.{quoted}" if self.place else quoted

    def invalid(self, key: str, problem: str) -> PolicyInvalid:
        """Returns the error about a field; about the table itself if the key is empty."""
        field = self.path(key) if key else self.place
        line = line_of(self.text, field)
        place = f"{self.source}: line {line}" if line else self.source
        return PolicyInvalid(f"{place}: {field}: {problem}")
