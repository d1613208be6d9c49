"""Files of records: JSON lines, CSV or a JSON document, plain or gzipped. Owns the line numbers of
records and the messages about unreadable files. Knows no benchmark's columns (formats.py).

JSON lines end at "\\n" only, because texts may contain U+2028 and similar. A byte-order mark and
CRLF are accepted.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.errors import DataInvalid

_BOM = b"\xef\xbb\xbf"


class RecordInvalid(Exception):
    """A record is malformed. The message names the field, the problem and the fix."""


@dataclass(frozen=True)
class Record:
    """The fields of one record, and the number of its first line."""

    line: int
    fields: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field exists and is not empty."""
        value = self.fields.get(name)
        return value is not None and (not isinstance(value, str) or bool(value.strip()))

    def text(self, name: str) -> str:
        """Returns a field that must hold text."""
        value = self.fields.get(name)
        if not self.has(name):
            raise RecordInvalid(f"{name} is missing or empty; give it a text")
        if not isinstance(value, str):
            raise RecordInvalid(f"{name} is not a text; put it in quotes")
        return value

    def label(self, name: str, harmful: str, harmless: str) -> bool:
        """Whether the field is `harmful` rather than `harmless`. Case does not matter."""
        value = self.fields.get(name)
        text = "" if value is None else str(value).strip().lower()
        if text not in (harmful, harmless):
            problem = f"is {text[:40]!r}" if text else "is missing"
            raise RecordInvalid(f"{name} {problem}; write {harmless} or {harmful}")
        return text == harmful


def read_text(path: Path) -> str:
    """Returns the file's text, decompressed if its name ends in .gz. Raises DataInvalid."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataInvalid(f"{path} cannot be read: {error}") from error
    content = content.removeprefix(_BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataInvalid(
            f"{path}:\nline {line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def suffix(path: Path) -> str:
    """Returns the file's extension without .gz: "csv", "json", ..."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[2].lower() if "." in name else ""


Part = Record | tuple[int, RecordInvalid]
"""A record, or the line of a malformed one and what is wrong with it."""


def json_lines(content: str) -> Iterator[Part]:
    """Yields an object for each line. Empty lines are skipped."""
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            yield number, RecordInvalid(f"not JSON ({error}); write one JSON object a line")
            continue
        if isinstance(fields, dict):
            yield Record(number, fields)
        else:
            yield number, RecordInvalid("not an object; write one JSON object a line")


def csv_records(content: str, columns: tuple[str, ...]) -> Iterator[Part]:
    """Yields a record for each row, with the names in the first row, which must have `columns`."""
    # The default limit is 131,072 characters a field; long conversations exceed it.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(content, newline=""))
    names: list[str] = []
    last_line = 0
    try:
        for cells in reader:
            line, last_line = last_line + 1, reader.line_num
            if not any(cells):
                continue
            if not names:
                names = cells
                missing = [name for name in columns if name not in names]
                if missing:
                    yield line, RecordInvalid(_missing(missing, names))
                    return
            elif len(cells) != len(names):
                yield line, RecordInvalid(_uneven(len(cells), len(names)))
            else:
                yield Record(line, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        yield last_line + 1, RecordInvalid(f"not CSV ({error}); check the quotes")


def _missing(missing: list[str], names: list[str]) -> str:
    return (
        f"no column {', '.join(missing)}; the first row must name the columns, and it names "
        f"{', '.join(names)[:200]}"
    )


def _uneven(cells: int, names: int) -> str:
    return f"{cells} cells under {names} columns; check quotes and commas"


def json_document(content: str) -> dict[str, Any]:
    """Returns a JSON object. Raises RecordInvalid with the line in its message."""
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise RecordInvalid(f"line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(document, dict):
        raise RecordInvalid("line 1: not an object; the file must hold one JSON object")
    return document


def line_of_key(content: str, key: str) -> int:
    """Returns the line of a key in a JSON document, as far as a text search can tell."""
    position = max(content.find(json.dumps(key)), content.find(json.dumps(key, ensure_ascii=False)))
    return content.count("\n", 0, max(position, 0)) + 1
