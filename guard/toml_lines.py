"""Finds the line of a field in a TOML file, for error messages. Owns only that: tomllib, which
parses the file, keeps no positions.
"""

import re
from collections import Counter
from collections.abc import Iterator

_PART = re.compile(r'"([^"]*)"|(\[\d+\])|([^.\[\]"\s]+)')
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r'\s*("[^"]*"|[\w-]+)\s*=')

_Path = tuple[str, ...]


def line_of(text: str, field: str) -> int | None:
    """Returns the number, from 1, of the line that holds a field or else the innermost table or
    value around it; None if there is none. field: a path such as `criteria[1].threshold`."""
    sought = _path(field)
    around = [(len(path), -number) for number, path in _paths(text) if sought[: len(path)] == path]
    return -max(around)[1] if around else None


def _path(field: str) -> _Path:
    return tuple("".join(groups) for groups in _PART.findall(field))


def _paths(text: str) -> Iterator[tuple[int, _Path]]:
    """Yields the number of each line with a header or a key, and the path that it begins."""
    tables: Counter[_Path] = Counter()
    current: _Path = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            current = _in_lists(_path(header[2]), tables, is_list=header[1] == "[[")
            yield number, current
        elif key := _KEY.match(line):
            yield number, (*current, *_path(key[1]))


def _in_lists(path: _Path, tables: Counter[_Path], *, is_list: bool) -> _Path:
    """Returns a header's path with the index of each list of tables in it; counts a new table."""
    resolved: _Path = ()
    for place, part in enumerate(path):
        resolved = (*resolved, part)
        if is_list and place == len(path) - 1:
            tables[resolved] += 1
        if tables[resolved]:
            resolved = (*resolved, f"[{tables[resolved] - 1}]")
    return resolved
