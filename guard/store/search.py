"""Finding flags by words of their text. Owns the search index, which each database keeps in its own
way: SQLite in an FTS5 table, PostgreSQL in tsvectors under a GIN index.

Both hold the same words, cut here, so that a search finds the same on either.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, bindparam, column, literal_column, select, table, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

_INDEX = table("flag_search")
_LONGEST_WORD = 64
_MOST_CHARACTERS = 200_000
"""Of all words of a flag together: PostgreSQL holds no more than 1 MiB of them in a row."""

_NOT_TEXT = ("role", "type")

_ADD = {
    "sqlite": "INSERT INTO flag_search (rowid, words) VALUES (:flag, :words)",
    "postgresql": "INSERT INTO flag_search (flag_id, words) "
    "VALUES (:flag, array_to_tsvector(string_to_array(:words, ' ')))",
}
_FLAG = {"sqlite": "rowid", "postgresql": "flag_id"}
_MATCHES = {
    "sqlite": "flag_search MATCH :asked",
    "postgresql": "words @@ CAST(:asked AS tsquery)",
}


def words_of(written: str) -> list[str]:
    """The different words of a text, in their order, without case."""
    plain = unicodedata.normalize("NFKC", written).casefold()
    return list(dict.fromkeys(word[:_LONGEST_WORD] for word in re.findall(r"[^\W_]+", plain)))


def text_of(messages: Sequence[Mapping[str, object]], *answers: str | None) -> str:
    """All that is written in a flag."""
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


async def index(session: AsyncSession, flag: int, written: str) -> None:
    """Makes a flag findable by the words of its text."""
    words, size = [], 0
    for word in words_of(written):
        size += len(word) + 1
        if size > _MOST_CHARACTERS:
            break
        words.append(word)
    statement = text(_ADD[_dialect(session)])
    await session.execute(statement, {"flag": flag, "words": " ".join(words)})


def found(
    session: AsyncSession, flag: InstrumentedAttribute[int], asked: str
) -> ColumnElement[bool]:
    """Whether a flag has all words asked for, or words that begin with them."""
    dialect = _dialect(session)
    # Words are letters and digits only, so that the quotes always close.
    if dialect == "sqlite":
        query = " ".join(f'"{word}"*' for word in words_of(asked))
    else:
        query = " & ".join(f"'{word}':*" for word in words_of(asked))
    matching = text(_MATCHES[dialect]).bindparams(bindparam("asked", query))
    return flag.in_(select(literal_column(_FLAG[dialect])).select_from(_INDEX).where(matching))


async def forget(session: AsyncSession, flags: Sequence[int]) -> None:
    """Takes flags out of the index."""
    key: ColumnElement[int] = column(_FLAG[_dialect(session)])
    await session.execute(_INDEX.delete().where(key.in_(flags)))


def _dialect(session: AsyncSession) -> str:
    return session.get_bind().dialect.name
