"""Flags are found, read and labelled on pages, as over JSON; errors are shown there."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from guard.criteria import Place
from guard.policy import Action
from guard.scripted import Script
from guard.store.flags import Flag
from guard.store.review import Label
from server.routes.moderations import Moderator
from tests.scripted import Bench
from tests.server.console.test_pages import check_headers
from tests.server.face import Face
from tests.server.markup import Markup

MakeBench = Callable[..., Bench]
OLD = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
async def queue(face: Face, flag: Flag) -> Face:
    """Flags 1 to 25; number 2 is old, of another user and adapter, and mentions a zeppelin."""
    for number in range(1, 26):
        each = replace(flag, request_id=f"r{number}")
        if number == 2:
            other: Any = {"created_at": OLD, "user_hash": "ab", "adapter": "7", "harm": 0.5}
            each = replace(each, answer="A zeppelin.", action=Action.ANNOTATE, **other)
        await face.flags.add(each)
    return face


async def page(face: Face, path: str) -> Markup:
    async with face.client() as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return Markup(response.text)


def numbers(page: Markup) -> list[int]:
    rows = [link for link in page.all("a") if "data-row" in link]
    return [int(str(row["href"]).rpartition("/")[2]) for row in rows]


async def test_older_flags_follow_to_the_end(queue: Face) -> None:
    first = await page(queue, "/console/flags?status=open&said=Hello")
    assert numbers(first) == [*range(25, 5, -1)]
    (older,) = [str(link["href"]) for link in first.all("a") if "data-next" in link]
    assert "said" not in older
    last = await page(queue, f"/console/flags{older}")
    assert numbers(last) == [5, 4, 3, 2, 1]
    assert not [link for link in last.all("a") if "data-next" in link]
    assert "Hello" in first.text
    assert "Hello" not in last.text


@pytest.mark.parametrize(
    "asked",
    [
        "q=ZEPP",
        "q=zeppelin&status=open&category=violence&action=annotate",
        "adapter=7",
        "user_hash=ab",
        "request_id=r2",
        "until=2025-01-02",
        "since=2025-01-01&until=2025-01-02",
        "max_score=0.6&min_score=0.4",
        "adapter=7&q=&status=&category=&since=&min_score=",
    ],
)
async def test_filters_find_what_they_say_and_stay_filled_in(queue: Face, asked: str) -> None:
    found = await page(queue, f"/console/flags?{asked}")
    assert numbers(found) == [2]
    assert {"class": "problem", "role": "alert"} not in found.all("p")
    filled = {str(field["name"]): str(field["value"]) for field in found.all("input")}
    for name, _, value in (each.partition("=") for each in asked.split("&")):
        assert filled.get(name, value) == value


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("q=%21%21", "q: search for at least one word"),
        ("q=" + "a" * 501, "q: String should have at most 500 characters"),
        ("status=maybe", "status: Input should be 'open', 'confirmed' or 'dismissed'"),
        ("category=Rude!", "category: String should match pattern"),
        ("action=shout", "action: Input should be"),
        ("since=yesterday", "since: Input should be a valid datetime"),
        ("since=2026-13-01", "since: Input should be a valid datetime"),
        ("until=0000-00-00", "until: Input should be a valid datetime"),
        ("min_score=2", "min_score: Input should be less than or equal to 1"),
        ("max_score=nan", "max_score: Input should be"),
        ("after=x", "after: Input should be a valid integer"),
        ("after=99999999999999999999", "after: Input should be less than or equal"),
        ("limit=0", "limit: Input should be greater than or equal to 1"),
        ("limit=101", "limit: Input should be less than or equal to 100"),
        ("colour=red", "colour: Extra inputs are not permitted"),
    ],
)
async def test_a_wrong_filter_is_reported_above_all_flags(
    queue: Face, asked: str, problem: str
) -> None:
    found = await page(queue, f"/console/flags?{asked}")
    assert problem in found.text
    assert {"class": "problem", "role": "alert"} in found.all("p")
    assert numbers(found) == [*range(25, 5, -1)]


async def test_a_label_is_kept_and_the_next_open_flag_follows(queue: Face) -> None:
    await queue.reviews.label([24], Label(review="dismissed"), "ada")
    shown = await page(queue, "/console/flags/25")
    assert shown.forms()["/console/flags/25/label"] == "post"
    buttons = [button.get("value") for button in shown.all("button") if "name" in button]
    assert buttons == ["confirmed", "dismissed"]
    assert "/console/flags/23" in shown.addresses
    form = {"review": "confirmed", "category": "hate", "answer": "No.\r\nNever.", "note": "a\r\nb"}
    async with queue.browser("review") as client:
        said = await client.post("/console/flags/25/label", data=form)
        assert said.status_code == 303
        assert said.headers["location"] == "/console/flags/23?said=Flag+25+is+confirmed."
        assert "Flag 25 is confirmed." in (await client.get(said.headers["location"])).text
        again = Markup((await client.get("/console/flags/25")).text)
    kept = await queue.reviews.get(25)
    assert (kept.review, kept.reviewer) == ("confirmed", "key 1 (anna)")
    assert (kept.corrected_category, kept.corrected_answer) == ("hate", "No.\nNever.")
    assert kept.note == "a\nb"
    assert "Confirmed by key 1 (anna)" in again.text
    assert "No.\nNever." in again.text


async def test_a_flagged_request_has_no_answer_to_correct(queue: Face, flag: Flag) -> None:
    number = await queue.flags.add(replace(flag, place=Place.INPUT, answer=""))
    assert numbers(await page(queue, "/console/flags?place=input")) == [number]
    shown = await page(queue, f"/console/flags/{number}")
    assert "The request was refused." in shown.text
    assert "Withheld answer" not in shown.text
    assert not [one for one in shown.all("textarea") if one.get("name") == "answer"]
    assert "flagged answers only" in (await page(queue, f"/console/flags/{number}/analysis")).text


async def test_after_the_last_open_flag_the_queue_follows(queue: Face) -> None:
    async with queue.client() as client:
        said = await client.post("/console/flags/1/label", data={"review": "dismissed"})
        queue_again = Markup((await client.get(said.headers["location"])).text)
    assert said.headers["location"].startswith("/console/flags?status=open&said=")
    assert "Flag 1 is dismissed." in queue_again.text
    assert numbers(queue_again)[0] == 25
    kept = await queue.reviews.get(1)
    assert (kept.corrected_category, kept.corrected_answer, kept.note) == (None, None, None)


async def test_a_later_label_takes_the_place_of_the_first(queue: Face) -> None:
    first = {"review": "confirmed", "category": "hate", "answer": "No.", "note": "sure"}
    empty = {"review": "dismissed", "category": "", "answer": "", "note": ""}
    async with queue.client() as client:
        for form in (first, empty):
            assert (await client.post("/console/flags/3/label", data=form)).status_code == 303
    kept = await queue.reviews.get(3)
    assert kept.review == "dismissed"
    assert (kept.corrected_category, kept.corrected_answer, kept.note) == (None, None, None)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "review: Field required"),
        ({"review": "fine"}, "review: Input should be 'confirmed' or 'dismissed'"),
        ({"review": "confirmed", "category": "rude"}, "category: unknown category"),
        ({"review": "confirmed", "reviewer": "ada"}, "reviewer: Extra inputs"),
        ({"review": "confirmed", "note": "x" * 100_001}, "note: String should have at most"),
    ],
)
async def test_a_wrong_label_changes_nothing(
    queue: Face, form: Mapping[str, str], message: str
) -> None:
    async with queue.client() as client:
        refused = await client.post("/console/flags/3/label", data=form)
    assert refused.status_code == 400
    check_headers(refused)
    assert message in Markup(refused.text).text
    assert (await queue.reviews.get(3)).review is None


async def test_a_flag_that_is_gone_cannot_be_labelled(queue: Face) -> None:
    async with queue.client() as client:
        refused = await client.post("/console/flags/99/label", data={"review": "confirmed"})
    assert refused.status_code == 404
    assert "There is no flag 99" in Markup(refused.text).text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"review": "confirmed"}'),
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n'),
        (
            "multipart/form-data; boundary=x; charset=unicode_escape",
            b'--x\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\n\\ud800\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="review"; filename="a"\r\n\r\nb\r\n--x--',
        ),
        ("application/x-www-form-urlencoded", b"&" * 10_000),
        ("application/x-www-form-urlencoded", b"review=%ff%fe&review=%00"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("path", ["/console/flags/3/label", "/console/login"])
async def test_an_invalid_form_is_reported_on_a_page(
    queue: Face, path: str, kind: str, body: bytes
) -> None:
    await queue.key("call")
    async with queue.browser("review") as client:
        refused = await client.post(path, content=body, headers={"content-type": kind})
    assert refused.status_code in (400, 401)
    check_headers(refused)
    assert refused.headers["content-type"].startswith("text/html")
    assert (await queue.reviews.get(3)).review is None


ATTACK = '<img src=x onerror=alert(1)> "{{ 7*7 }}"'


def asking(face: Face, bench: Bench) -> None:
    """Allows the page to ask a model."""
    state = face.app.state.setback
    state.moderator = Moderator(bench.critic, bench.chat_format, ["practice"])
    state.adapters = bench.adapters


async def test_the_analysis_is_the_models_and_text(
    face: Face, flag: Flag, make_bench: MakeBench
) -> None:
    bench = make_bench(Script(answers=lambda prompt: (ATTACK,)))
    asking(face, bench)
    parts = [{"type": "text", "text": "How do I harm it,"}, {"type": "text", "text": "in parts?"}]
    await face.flags.add(replace(flag, messages=[{"role": "user", "content": parts}]))
    shown = await page(face, "/console/flags/1/analysis")
    assert [tag for tag, _ in shown.elements] == ["p", "p"]
    assert ATTACK in shown.text
    assert "By adapter base" in shown.text
    judged = bench.engine.log[0][1]
    assert "How do I harm it,\nin parts?" in judged
    assert flag.answer in judged


@pytest.mark.parametrize(
    ("harm", "failure", "message", "told"),
    [
        (1.0, None, {"role": "user", "content": "a"}, "itself flagged and is withheld"),
        (0.0, RuntimeError("no engine"), {"role": "user", "content": "a"}, "critique failed"),
        (0.0, None, {"role": "tool", "content": None}, "Fine. By adapter base"),
    ],
)
async def test_an_analysis_that_cannot_be_had_says_why(
    face: Face,
    flag: Flag,
    make_bench: MakeBench,
    harm: float,
    failure: Exception | None,
    message: dict[str, Any],
    told: str,
) -> None:
    script = Script(answers=lambda prompt: ("Fine.",), harm=lambda prompt: harm)
    script.fail_critique = failure
    asking(face, make_bench(script))
    await face.flags.add(replace(flag, messages=[message]))
    shown = await page(face, "/console/flags/1/analysis")
    assert told in " ".join(shown.text.split())
    assert ("Fine." in shown.text) == told.startswith("Fine.")
