"""How fast reviewers find flags among many: `python -m tests.bench_review DATABASE_URL [FLAGS]`.

Fills a migrated database with made-up flags and times pages of every kind, an export and a purge.
Also prints the database's query plans. Measures the store, not HTTP.
"""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, insert, text

from guard.policy import Action
from guard.store import search
from guard.store.review import Filter, ReviewStore
from guard.store.tables import FlagCategoryRow, FlagRow
from guard.store.url import parse_url
from guard.verdict import CATEGORIES

FLAGS = 100_000
_BATCH = 2_000
_ROUNDS = 30
_MOVED = 50_000
_PAGE = 20
_START = datetime(2026, 1, 1, tzinfo=UTC)
_WORDS = [f"{first}{last}" for first in ("kl", "mn", "pr", "st", "tr") for last in range(600)]
_COMMON = [
    *("how", "do", "i", "make", "a", "thing", "that", "is", "not", "for", "everybody", "and"),
    *("tell", "nobody", "about", "it"),
]

LOOKS: Mapping[str, Filter] = {
    "newest": Filter(),
    "deep page": Filter(before_id=5_000),
    "category": Filter(category="hate/threatening"),
    "rare category": Filter(category="violence/graphic"),
    "adapter": Filter(adapter="setback-0003"),
    "no such adapter": Filter(adapter="setback-0999"),
    "action and score": Filter(action=Action.ANNOTATE, harm_from=0.9999),
    "open, of a week": Filter(status="open", since=_START, until=_START + timedelta(days=7)),
    "dismissed": Filter(status="dismissed"),
    "one user": Filter(user_hash="user-17"),
    "rare word": Filter(text="mn77 pr3"),
    "common word": Filter(text="everybody"),
    "beginning of a word": Filter(text="kl4"),
    "no such word": Filter(text="zeppelin"),
    "word and filters": Filter(text="st12", status="open", category="hate", harm_to=0.9),
}


async def fill(store: ReviewStore, count: int) -> None:
    """Adds made-up flags, a minute apart, the same each time."""
    rng = random.Random(1)
    for first in range(1, count + 1, _BATCH):
        last = min(first + _BATCH, count + 1)
        rows = [_row(rng, number, count) for number in range(first, last)]
        named = [{"category": c, "flag_id": row["id"]} for row in rows for c in row["categories"]]
        async with store._transaction() as session:
            await session.execute(insert(FlagRow), rows)
            await session.execute(insert(FlagCategoryRow), named)
            for row in rows:
                written = search.text_of(row["messages"], row["answer"])
                await search.index(session, row["id"], written)
    async with store._transaction() as session:
        await session.execute(text("ANALYZE"))


def _row(rng: random.Random, number: int, count: int) -> dict[str, Any]:
    question = " ".join(rng.choices(_COMMON, k=12) + rng.choices(_WORDS, k=4))
    category = "violence/graphic" if rng.random() < 0.0005 else rng.choice(sorted(CATEGORIES)[:8])
    review = rng.choices([None, "confirmed", "dismissed"], [90, 9, 1])[0]
    return {
        "id": number,
        "created_at": _START + timedelta(minutes=number),
        "request_id": f"request-{number}",
        "route": "/v1/chat/completions",
        "choice": 0,
        "messages": [{"role": "user", "content": question}],
        "answer": " ".join(rng.choices(_COMMON, k=60) + rng.choices(_WORDS, k=20)),
        "harm": rng.uniform(0.5, 1),
        "category_scores": {name: rng.random() for name in CATEGORIES},
        "categories": [category],
        "action": rng.choice([Action.REVISE, Action.BLOCK, Action.ANNOTATE]),
        "adapter": f"setback-{number * 8 // count:04}",
        "model": "practice",
        "model_revision": "r",
        "policy_hash": "p",
        "prompt_version": "1",
        "user_hash": f"user-{rng.randrange(500)}",
        "review": review,
    }


async def timed(store: ReviewStore, which: Filter) -> tuple[int, list[float]]:
    """Returns the number of flags on the page, and how long each run took, in ms."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        flags = await store.page(which, _PAGE)
        taken.append(1000 * (time.perf_counter() - started))
    return len(flags), taken


async def plan(store: ReviewStore, which: Filter) -> Iterator[str]:
    """Returns the database's plan for a page's query."""
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        statements.append((statement, parameters))

    event.listen(store._engine.sync_engine, "before_cursor_execute", note)
    await store.page(which, _PAGE)
    event.remove(store._engine.sync_engine, "before_cursor_execute", note)
    statement, parameters = statements[-1]
    sqlite = store._engine.dialect.name == "sqlite"
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
    async with store._transaction() as session:
        connection = await session.connection()
        rows = await connection.exec_driver_sql(explain + statement, parameters)
        return iter([str(row[-1]) for row in rows])


async def bulk(store: ReviewStore) -> Mapping[str, tuple[int, float]]:
    """Returns how many flags were exported and purged, and how many seconds it took."""
    started = time.perf_counter()
    exported = sum([1 async for _ in store.export(Filter(before_id=_MOVED))])
    done = time.perf_counter()
    purged = len(await store.delete(Filter(until=_START + timedelta(minutes=_MOVED)), by="bench"))
    return {
        "export": (exported, done - started),
        "purge of the oldest": (purged, time.perf_counter() - done),
    }


async def main(url: str, count: int = FLAGS) -> None:
    """Fills an empty database, then times and explains every query."""
    store = ReviewStore(parse_url(url))
    if not await store.page(Filter(), 1):
        started = time.perf_counter()
        await fill(store, count)
        print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)  # noqa: T201
    print("| look | flags | p50, ms | p95, ms |\n|---|---|---|---|")  # noqa: T201
    for name, which in LOOKS.items():
        count, taken = await timed(store, which)
        p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
        print(f"| {name} | {count} | {p50:.1f} | {p95:.1f} |")  # noqa: T201
    for name, (count, seconds) in (await bulk(store)).items():
        print(f"| {name} | {count} | {seconds:.1f} s | |")  # noqa: T201
    for name, which in LOOKS.items():
        print(f"\n{name}", *(await plan(store, which)), sep="\n  ")  # noqa: T201
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
