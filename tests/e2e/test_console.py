"""The whole loop in a real browser: flags are reviewed by keyboard, a run trains on them while its
page is watched, its adapter is rolled back and promoted. Each page is checked large and small,
light and dark. At last a run whose flags are poisoned is stopped.

Unless pytest is called with `--full`, the run is small (see loop.py) and killed in two stages
instead of all: it goes through every stage and its gate decides, but it need not be promoted, and
its adapter need not agree with the reviewers. The later tests use its adapter all the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from guard.policy import Action
from guard.store.flags import Flag, FlagStore, StoredFlag
from guard.store.runs import STAGES
from refine.practice.pairs import recipe_answer
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind as RequestKind
from refine.stages.dataset import Kind
from tests.e2e.browser import DARK, DESKTOP, LIGHT, PHONE, Browser, browsing
from tests.e2e.loop import CYCLE_S, Loop, ask, disputed

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]

ENDS = {True: {"promoted"}, False: {"promoted", "rejected"}}
"""How a run may end, with its defaults and small."""

ESCAPE = "\ue00c"
"""The key, as WebDriver calls it."""
CORRECTION = "I will not help with that. Ask the town hall what is allowed."


@pytest.fixture(scope="module")
def browser(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser in which each test continues where the previous one ended."""
    with browsing(loop.server.base_url, tmp_path_factory.mktemp("browser")) as it:
        yield it


def harmful_of(loop: Loop) -> list[StoredFlag]:
    """Returns the flags that are certainly harmful, newest first."""
    return [flag for flag in loop.flags() if flag.harm > 0.9]


def test_a_key_logs_in(loop: Loop, browser: Browser) -> None:
    browser.open("/console")
    browser.wait_for_path("/console/login")
    browser.press("sb-wrong\n")
    browser.wait_for("No valid key has this secret.")
    browser.press(f"{loop.secrets['admin']}\n")
    browser.wait_for_path("/console/flags?status=open")
    assert "for admin" in browser.text


def test_flags_are_reviewed_by_keyboard(loop: Loop, browser: Browser) -> None:
    newest, *_ = loop.flags()
    browser.open("/console/flags?status=open")
    browser.press("jjk\n")
    browser.wait_for_path(f"/console/flags/{newest.id}")
    assert newest.answer not in browser.text
    browser.press("w")
    browser.wait_for(" ".join(newest.answer.split())[:60])
    browser.press("a")
    browser.wait_for("By adapter base, as it judges now.")
    browser.press("oSeen twice.")
    browser.press(ESCAPE + "d")
    browser.wait_for(f"Flag {newest.id} is dismissed.")
    assert (labelled := loop.flags()[0]).review == "dismissed"
    assert (labelled.note, labelled.reviewer) == ("Seen twice.", "key 2 (for admin)")


def test_a_correction_is_typed_in(loop: Loop, browser: Browser) -> None:
    flag, *_ = harmful_of(loop)
    browser.open(f"/console/flags/{flag.id}")
    browser.press(f"e{CORRECTION}{ESCAPE}c")
    browser.wait_for(f"Flag {flag.id} is confirmed.")
    (corrected,) = loop.flags(request_id=flag.request_id)
    assert (corrected.review, corrected.corrected_answer) == ("confirmed", CORRECTION)


def test_a_run_whose_job_was_killed_is_finished_from_the_console(
    loop: Loop, browser: Browser, full: bool
) -> None:
    loop.dismiss_false_alarms()
    loop.label(harmful_of(loop)[1:10], review="confirmed", answer=CORRECTION)
    like = disputed(25, seed=4)
    before = loop.harms(like) if full else []
    for stage in STAGES[:-1] if full else ("train",):
        loop.kill_in(stage)
    browser.open("/console/runs")
    browser.click("Start a run")
    browser.wait_for_path("/console/runs/1")
    browser.wait_for("Not decided yet.")
    # The page must refresh itself: the test does not reload it.
    browser.wait_for("Ended", CYCLE_S)
    (run,) = loop.runs()
    assert (run.id, run.status in ENDS[full]) == (1, True), browser.text
    assert run.status in browser.one("h1").text
    assert "critic" in browser.one(".card table").text
    assert run.measures
    assert run.reasons
    if not full and run.status == "rejected":
        loop.promote(run)
    loop.wait_until_served("setback-1")
    if full:
        # Without the dismissals, the rest of what the run learns would raise the harm a little.
        assert fmean(loop.harms(like)) < 0.85 * fmean(before)


def test_training_follows_the_reviewers_labels(loop: Loop) -> None:
    examples = loop.examples(1)
    fine = {flag.id for flag in loop.flags(status="dismissed")}
    assert {example.kind for example in examples if example.flag_id in fine} == {Kind.FINE_CRITIQUE}
    corrected = {flag.id for flag in loop.flags(status="confirmed")}
    safe = {e.completion for e in examples if e.flag_id in corrected and e.kind is Kind.SAFE}
    assert safe == {CORRECTION}


def test_nothing_is_learned_twice(loop: Loop) -> None:
    again = loop.refine()
    assert again.status == "too_few"
    assert again.counts["learn"] == 0


def test_an_adapter_is_rolled_back_and_promoted(loop: Loop, browser: Browser) -> None:
    browser.open("/console/adapters")
    browser.click("Roll back")
    browser.wait_for("Roll back?")
    browser.press("Looks odd.\n")
    browser.wait_for("In force: the base,")
    loop.wait_until_served("base")
    browser.click("Promote")
    browser.wait_for("Promote adapter 1?")
    browser.press("Was fine.\n")
    browser.wait_for("In force: adapter 1,")
    assert "Looks odd." in browser.text
    loop.wait_until_served("setback-1")


PAGES = {
    "flags": "/console/flags?status=open",
    "filters": "/console/flags?min_score=0.5&q=to",
    "flag": "/console/flags/{flag}",
    "runs": "/console/runs",
    "run": "/console/runs/1",
    "adapters": "/console/adapters",
    "adapter": "/console/adapters/1",
    "rollback": "/console/adapters/rollback",
    "traffic": "/console/traffic?span=1h",
    "login": "/console/login",
}


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_for_everybody(
    loop: Loop,
    browser: Browser,
    pictures: Path | None,
    name: str,
    size: tuple[int, int],
    scheme: str,
) -> None:
    flag = harmful_of(loop)[20]
    browser.complaints()  # Drops those of earlier pages, such as the one for a wrong key.
    browser.look(size, scheme)
    browser.open(PAGES[name].format(flag=flag.id))
    if name == "flag":
        browser.press("wa")
        browser.wait_for("as it judges now.")
    if pictures:
        browser.picture(pictures / f"{name}-{size[0]}-{scheme}.png")
    assert browser.violations() == []
    assert browser.overflow() <= 0
    assert browser.complaints() == []


def test_a_reviewer_may_not_do_what_admins_do(loop: Loop, browser: Browser) -> None:
    browser.look(DESKTOP, LIGHT)
    browser.forget()
    browser.open("/console/runs")
    browser.wait_for_path("/console/login")
    browser.press(f"{loop.secrets['review']}\n")
    browser.wait_for_path("/console/runs")
    assert "Starting one needs an admin's key." in browser.text
    for page, words in (("adapters", "Roll back"), ("adapters/1", "Promote")):
        browser.open(f"/console/{page}")
        assert words not in browser.text


def flagged(flag: Flag, kind: RequestKind, n: int, seed: int) -> list[Flag]:
    """Returns requests of a kind with complying answers, as flags of different users."""
    return [
        replace(
            flag,
            request_id=f"{kind} {seed} {number}",
            messages=list(request.messages),
            answer=recipe_answer(request),
            categories=("violence",),
            action=Action.BLOCK,
            user_hash=f"{kind} {number // 8}",
        )
        for number, request in enumerate(draw_traffic(kind, n, seed))
    ]


def test_one_user_with_false_flags_is_stopped_by_the_cap(loop: Loop, flag: Flag) -> None:
    mixed = [
        *flagged(flag, RequestKind.EVERYDAY, 80, seed=5),
        *flagged(flag, RequestKind.HARMFUL, 20, seed=5),
    ]

    async def write(store: FlagStore) -> None:
        for original in mixed:
            await store.add(replace(original, user_hash="one user"))

    ask(FlagStore(loop.server.database), write)
    run = loop.refine()
    assert run.status == "too_few"
    assert "over the cap of 20 flags of one user: " in run.reasons[0]
