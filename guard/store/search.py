"""Full-text search of flags. Owns the search index: an FTS5 table in SQLite, tsvectors under a GIN
index in PostgreSQL. Words are split here, so that both databases find the same flags.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, bindparam, column, literal_column, select, table, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

_INDEX = table("flag_search")
_LONGEST_WORD = 64
_MAX_WORD_CHARACTERS = 200_000
"""For one flag; PostgreSQL holds at most 1 MiB of words in a row."""

_NOT_TEXT = ("role", "type")

_ADD = {
    "sqlite": "INSERT INTO flag_search (rowid, words) VALUES (:flag, :words)",
    "postgresql": "INSERT INTO flag_search (flag_id, words) "
    "VALUES (:flag, array_to_tsvector(string_to_array(:words, ' ')))",
}
_FLAG = {"sqlite": "rowid", "postgresql": "flag_id"}
_MATCH_CONDITIONS = {
    "sqlite": "flag_search MATCH :query",
    "postgresql": "words @@ CAST(:query AS tsquery)",
}


def words_of(content: str) -> list[str]:
    """Returns the distinct words of a text in order, case-folded."""
    plain = unicodedata.normalize("NFKC", content).casefold()
    return list(dict.fromkeys(word[:_LONGEST_WORD] for word in re.findall(r"[^\W_]+", plain)))


def text_of(messages: Sequence[Mapping[str, object]], *answers: str | None) -> str:
    """Returns all text in a flag."""
    return "\n".join((*_strings(list(messages)), *filter(None, answers)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _NOT_TEXT:
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


async def index(session: AsyncSession, flag: int, content: str) -> None:
    """Adds a flag's text to the index."""
    words, size = [], 0
    for word in words_of(content):
        size += len(word) + 1
        if size > _MAX_WORD_CHARACTERS:
            break
        words.append(word)
    statement = text(_ADD[_dialect(session)])
    await session.execute(statement, {"flag": flag, "words": " ".join(words)})


def matches(
    session: AsyncSession, flag: InstrumentedAttribute[int], words: str
) -> ColumnElement[bool]:
    """Whether a flag has all the words, or words that begin with them."""
    dialect = _dialect(session)
    # Words hold only letters and digits, so that the quoting is safe.
    if dialect == "sqlite":
        query = " ".join(f'"{word}"*' for word in words_of(words))
    else:
        query = " & ".join(f"'{word}':*" for word in words_of(words))
    matching = text(_MATCH_CONDITIONS[dialect]).bindparams(bindparam("query", query))
    return flag.in_(select(literal_column(_FLAG[dialect])).select_from(_INDEX).where(matching))


async def remove(session: AsyncSession, flags: Sequence[int]) -> None:
    """Removes flags from the index."""
    key: ColumnElement[int] = column(_FLAG[_dialect(session)])
    await session.execute(_INDEX.delete().where(key.in_(flags)))


def _dialect(session: AsyncSession) -> str:
    return session.get_bind().dialect.name
