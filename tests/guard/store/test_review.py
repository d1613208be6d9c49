"""How reviewers search and label flags, on SQLite and PostgreSQL."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL

from guard.errors import FlagUnknown
from guard.policy import Action
from guard.store.flags import Flag, FlagStore
from guard.store.review import Filter, Label, ReviewStore
from guard.store.runs import RunStore
from tests.guard.store.test_runs import begin

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def found(reviews: ReviewStore, **conditions: Any) -> list[int]:
    return [flag.id for flag in await reviews.page(Filter(**conditions), limit=100)]


async def test_pages_are_newest_first(store: FlagStore, reviews: ReviewStore, flag: Flag) -> None:
    numbers = [await store.add(flag) for _ in range(5)]
    first = await reviews.page(Filter(), limit=2)
    second = await reviews.page(Filter(before_id=first[-1].id), limit=2)
    assert [one.id for one in (*first, *second)] == sorted(numbers, reverse=True)[:4]


@pytest.mark.parametrize(
    ("change", "conditions", "others"),
    [
        ({"created_at": NOON}, {"since": NOON, "until": NOON + timedelta(seconds=1)}, {}),
        ({"adapter": "setback-0007"}, {"adapter": "setback-0007"}, {"adapter": "setback-000"}),
        ({"action": Action.ANNOTATE}, {"action": Action.ANNOTATE}, {"action": Action.PASS}),
        ({"harm": 0.61}, {"harm_from": 0.6, "harm_to": 0.62}, {"harm_to": 0.6}),
        ({"request_id": "other"}, {"request_id": "other"}, {"request_id": "othe"}),
        ({"user_hash": "ab"}, {"user_hash": "ab"}, {"user_hash": "a"}),
        ({"categories": ("sexual",)}, {"category": "sexual"}, {"category": "sexual/minors"}),
        (
            {"categories": ("hate", "sexual/minors")},
            {"category": "sexual/minors"},
            {"category": "sexual"},
        ),
        (
            {"harm": 0.61, "adapter": "x"},
            {"harm_from": 0.5, "adapter": "x"},
            {"harm_from": 0.7, "adapter": "x"},
        ),
    ],
)
async def test_filters_find_what_meets_them_and_nothing_else(
    store: FlagStore,
    reviews: ReviewStore,
    flag: Flag,
    change: Mapping[str, Any],
    conditions: Mapping[str, Any],
    others: Mapping[str, Any],
) -> None:
    await store.add(flag)
    wanted = await store.add(replace(flag, **change))
    await store.add(flag)
    assert await found(reviews, **conditions) == [wanted]
    if others:
        assert await found(reviews, **others) == []


@pytest.mark.parametrize(
    "asked", ["zeppelin", "ZEPP", "airship zeppelin", "Zürich", "zürich's", "123", "'zepp' \"air*"]
)
async def test_search_finds_words_and_their_beginnings_anywhere(
    store: FlagStore, reviews: ReviewStore, flag: Flag, asked: str
) -> None:
    await store.add(flag)
    messages = [{"role": "user", "content": [{"type": "text", "text": "an air-ship: airship?"}]}]
    wanted = await store.add(
        replace(flag, messages=messages, answer="Zeppelin, ZÜRICH's!", revision="call 123-456")
    )
    assert await found(reviews, text=asked) == [wanted]


@pytest.mark.parametrize("asked", ["zeppelins", "eppelin", "gnome zeppelin", "user", "text"])
async def test_search_needs_every_word_from_its_beginning(
    store: FlagStore, reviews: ReviewStore, flag: Flag, asked: str
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "value": "airship"}]}]
    await store.add(replace(flag, messages=messages, answer="a zeppelin"))
    assert await found(reviews, text=asked) == []


async def test_flags_with_more_words_than_an_index_holds_are_stored_all_the_same(
    store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    answer = " ".join(f"word{number}" + "x" * 90 for number in range(30_000))
    number = await store.add(replace(flag, answer=answer))
    assert await found(reviews, text="word7x") == [number]


async def test_labels_are_kept_and_replaced_whole(
    store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    first, second = [await store.add(flag) for _ in range(2)]
    said = Label(review="confirmed", category="hate", answer="No.\0", note="see above")
    labelled = await reviews.label([first, second, first], said, "ada")
    assert [one.id for one in labelled] == [first, second]
    stored = await reviews.get(first)
    assert stored == labelled[0]
    assert (stored.review, stored.reviewer, stored.note) == ("confirmed", "ada", "see above")
    assert (stored.corrected_category, stored.corrected_answer) == ("hate", "No.\ufffd")
    assert stored.reviewed_at is not None

    await reviews.label([first], Label(review="dismissed"), "bob")
    again = await reviews.get(first)
    assert (again.review, again.reviewer) == ("dismissed", "bob")
    assert (again.corrected_category, again.corrected_answer, again.note) == (None, None, None)
    assert await found(reviews, status="dismissed") == [first]
    assert await found(reviews, status="confirmed") == [second]
    assert await found(reviews, status="open") == []


async def test_labelling_many_is_all_or_nothing(
    store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    number = await store.add(flag)
    with pytest.raises(FlagUnknown, match="no flag 77"):
        await reviews.label([number, 77], Label(review="confirmed"), "ada")
    assert await found(reviews, status="open") == [number]


async def test_an_export_is_everything(store: FlagStore, reviews: ReviewStore, flag: Flag) -> None:
    numbers = [await store.add(flag) for _ in range(3)]
    await store.add(replace(flag, adapter="other"))
    exported = [one.id async for one in reviews.export(Filter(adapter=flag.adapter), at_once=2)]
    assert exported == numbers[::-1]


async def test_the_number_of_a_deleted_flag_is_not_given_again(
    store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    first, last = await store.add(flag), await store.add(replace(flag, user_hash="ab"))
    assert await reviews.delete(Filter(user_hash="ab"), "ada") == [last]
    assert first < last < await store.add(flag)


async def test_deleted_flags_leave_nothing_behind(
    database: URL, store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    old = [
        await store.add(replace(flag, created_at=NOON, answer="zeppelin", user_hash="ab"))
        for _ in range(2)
    ]
    kept = await store.add(replace(flag, answer="zeppelin"))
    runs = RunStore(database)
    run = await begin(runs)
    await runs.set_flags(run.id, {old[0]: "train", kept: "train"})
    assert await reviews.delete(Filter(until=NOON), "ada") == []
    assert sorted(await reviews.delete(Filter(user_hash="ab"), "ada")) == old
    with pytest.raises(FlagUnknown):
        await reviews.get(old[0])
    assert await found(reviews, text="zeppelin") == [kept]
    assert await found(reviews, category=flag.categories[0]) == [kept]
    await runs.finish(run.id, "promoted")
    assert await store.unlearned(limit=9) == []
    await runs.close()
