"""On pages, only admins start and cancel runs, and promote and roll back adapters."""

from pathlib import Path

import pytest
from sqlalchemy import URL

from guard.calibration import Calibration, Scales
from guard.calibrations import Calibrations
from guard.store.calibrations import CalibrationStore
from guard.store.flags import Flag
from guard.store.url import parse_url
from refine.schedule import LEASE
from tests.server.console.test_pages import check_headers
from tests.server.face import STATUSES, Face, fill
from tests.server.jobs.test_run_control import face_with, job
from tests.server.markup import Markup

CHANGES: tuple[tuple[str, dict[str, str]], ...] = (
    ("/console/runs", {}),
    ("/console/runs/1/cancel", {}),
    ("/console/adapters/rollback", {"reason": "no"}),
    ("/console/adapters/4/promote", {"reason": "no"}),
    ("/console/rollouts/stop", {}),
)
PAGES = (
    *("/console/runs", "/console/runs/1", "/console/runs/2"),
    *("/console/adapters", "/console/adapters/2", "/console/adapters/4"),
)


def leads_to_changes(page: Markup) -> set[str]:
    """Returns the links and forms that are for admins."""
    promoting = {each for each in page.addresses if each.endswith(("/promote", "/rollback"))}
    starting = {each for each in page.forms() if each == "/console/runs"}
    cancelling = {"cancel" for button in page.all("button") if button.get("form") == "cancel"}
    return promoting | starting | cancelling


async def test_reviewers_see_no_buttons_of_admins_and_cannot_do_without(
    face: Face, flag: Flag
) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("review") as client:
        for path in PAGES:
            page = Markup((await client.get(path)).text)
            assert leads_to_changes(page) == set(), path
            assert "key 1 (anna), review" in page.text
        for path, form in CHANGES:
            refused = await client.post(path, data=form)
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "insufficient_permissions"
            check_headers(refused)
    assert await face.registry.active() == 1
    assert len(await face.runs.list(10)) == len(STATUSES)


async def test_admins_see_the_buttons(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    await face.runs.start(model="m", model_revision="1", parent=None, seed=0, options={})
    async with face.browser("admin") as client:
        paths = (*PAGES, "/console/runs/7")
        seen = {path: leads_to_changes(Markup((await client.get(path)).text)) for path in paths}
    promotions = {f"/console/adapters/{number}/promote" for number in (2, 4, 5, 6)}
    assert seen == {
        "/console/runs": {"/console/runs"},
        "/console/runs/1": set(),
        "/console/runs/2": set(),
        "/console/runs/7": {"cancel"},
        "/console/adapters": promotions | {"/console/adapters/rollback"},
        "/console/adapters/2": {"/console/adapters/2/promote"},
        "/console/adapters/4": {"/console/adapters/4/promote"},
    }


async def test_a_run_is_started_and_then_shown(database: URL) -> None:
    async with face_with(database, *job(database, "begin")) as face:
        async with face.browser("admin") as client:
            started = await client.post("/console/runs")
            assert (started.status_code, started.headers["location"]) == (303, "/console/runs/1")
            page = Markup((await client.get("/console/runs/1")).text)
            assert "/console/runs/1/cancel" in page.forms()
        (entry,) = [each for each in await face.audit.list(10) if each.event == "run.started"]
        assert (entry.actor, entry.subject) == ("key 1 (anna)", "run 1")


async def test_why_a_run_cannot_start_is_reported_on_a_page(database: URL) -> None:
    async with face_with(database, "echo", "no luck") as face:
        async with face.client() as client:
            dead = await client.post("/console/runs")
            await face.leases.acquire(LEASE, "host-a pid 7", 60)
            held = await client.post("/console/runs")
        assert await face.runs.list(1) == []
    assert dead.status_code == 503
    assert "ended early: no luck" in Markup(dead.text).text
    assert held.status_code == 409
    assert "host-a pid 7 holds the lease" in Markup(held.text).text


async def test_a_run_that_nobody_works_on_is_cancelled_at_once(face: Face, flag: Flag) -> None:
    await face.runs.start(model="m", model_revision="1", parent=None, seed=0, options={})
    async with face.browser("admin") as client:
        before = Markup((await client.get("/console/runs/1")).text)
        part = await client.get("/console/runs/1", headers={"hx-request": "true"})
        cancelled = await client.post("/console/runs/1/cancel")
        after = Markup((await client.get(cancelled.headers["location"])).text)
        again = await client.post("/console/runs/1/cancel")
        unknown = await client.post("/console/runs/9/cancel")
    assert before.all("div")[0]["hx-get"] == "/console/runs/1"
    assert (
        Markup(part.text).structure[0]
        == before.structure[
            before.structure.index(("div", ("id", "hx-get", "hx-trigger", "hx-swap")))
        ]
    )
    assert "<html" not in part.text
    assert (cancelled.status_code, cancelled.headers["location"]) == (303, "/console/runs/1")
    assert "hx-get" not in after.all("div")[0]
    assert "cancelled by key 1 (anna)" in after.text
    assert (again.status_code, unknown.status_code) == (409, 404)
    assert "Run 1 has ended: cancelled" in Markup(again.text).text


async def test_an_adapter_is_promoted_and_rolled_back_with_the_reason(
    face: Face, flag: Flag
) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("admin") as client:
        asked = Markup((await client.get("/console/adapters/4/promote")).text)
        assert asked.forms()["/console/adapters/4/promote"] == "post"
        assert "FAILS oddity" in asked.text
        done = await client.post("/console/adapters/4/promote", data={"reason": "it is better"})
        assert (done.status_code, done.headers["location"]) == (303, "/console/adapters")
        assert await face.registry.active() == 4
        shown = Markup((await client.get("/console/adapters/4")).text)
        assert "by key 1 (anna): it is better" in shown.text
        back = Markup((await client.get("/console/adapters/rollback")).text)
        assert back.forms()["/console/adapters/rollback"] == "post"
        done = await client.post("/console/adapters/rollback", data={})
        assert (done.status_code, done.headers["location"]) == (303, "/console/adapters")
    assert await face.registry.active() == 1


async def test_a_rollout_is_started_shown_and_stopped(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("admin") as client:
        done = await client.post("/console/adapters/4/promote", data={"share": "5%", "reason": "x"})
        assert (done.status_code, done.headers["location"]) == (303, "/console/adapters")
        assert await face.registry.active() == 1
        shown = Markup((await client.get("/console/adapters")).text)
        for part in ("Rollout 2", "for 5% of", "by key 1 (anna): x", "flagged: not known yet"):
            assert part in shown.text
        assert shown.forms()["/console/rollouts/stop"] == "post"
        stopped = await client.post("/console/rollouts/stop", data={})
        assert (stopped.status_code, stopped.headers["location"]) == (303, "/console/adapters")
        shown = Markup((await client.get("/console/adapters")).text)
        assert "stopped by key 1 (anna)" in shown.text
        assert "/console/rollouts/stop" not in shown.forms()


async def test_with_an_empty_share_an_adapter_is_promoted(face: Face, flag: Flag) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("admin") as client:
        await client.post("/console/adapters/4/promote", data={"share": "", "reason": ""})
    assert await face.registry.active() == 4


@pytest.mark.parametrize(
    ("path", "form", "status", "message"),
    [
        ("/adapters/3/promote", {}, 409, "Adapter 3 was rejected"),
        ("/adapters/99/promote", {}, 404, "There is no adapter 99"),
        ("/adapters/x/promote", {}, 404, "There is no such page"),
        ("/adapters/2/promote", {"reason": "x" * 1001}, 400, "reason: String should have at most"),
        ("/adapters/2/promote", {"share": "5"}, 400, "share: '5' is no share of requests"),
        ("/adapters/1/promote", {"share": "5%"}, 409, "Adapter 1 is active already"),
        ("/rollouts/stop", {}, 409, "No rollout is running"),
        ("/adapters/rollback", {"reason": "x" * 1001}, 400, "reason: String should have at most"),
        ("/runs/2/cancel", {}, 409, "Run 2 has ended: promoted"),
        ("/runs/x/cancel", {}, 404, "There is no such page"),
    ],
)
async def test_impossible_changes_are_reported_and_change_nothing(
    face: Face, flag: Flag, path: str, form: dict[str, str], status: int, message: str
) -> None:
    await fill(face, flag, "oddity")
    before = await face.registry.history()
    async with face.client() as client:
        refused = await client.post(f"/console{path}", data=form)
    assert refused.status_code == status
    check_headers(refused)
    assert message in Markup(refused.text).text
    assert await face.registry.history() == before


async def test_with_the_base_active_there_is_no_rollback(face: Face) -> None:
    async with face.client() as client:
        refused = await client.post("/console/adapters/rollback", data={})
    assert refused.status_code == 409
    assert "nothing to go back to" in Markup(refused.text).text


async def test_the_active_adapter_shows_whether_it_is_calibrated(
    face: Face, flag: Flag, tmp_path: Path
) -> None:
    await fill(face, flag, "oddity")
    async with face.browser("admin") as client:
        for path in ("/console/adapters", "/console/adapters/1"):
            assert "verdicts not calibrated" in Markup((await client.get(path)).text).text
        calibrations: Calibrations = face.app.state.setback.calibrations
        store = CalibrationStore(parse_url(f"sqlite:///{tmp_path}/face.db"))
        fitted = Scales(Calibration(2.0, 0.0))
        await store.add(adapter=1, model_revision="rev", scales=fitted, rows=80, by="anna")
        await store.close()
        await calibrations.refresh()
        for path in ("/console/adapters", "/console/adapters/1"):
            assert "calibrated on 80 lines" in Markup((await client.get(path)).text).text
        assert "not calibrated" in Markup((await client.get("/console/adapters/2")).text).text
