"""/console/policy: a text is tried and activated, and a wrong one is told by its line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from guard.policy import Action
from guard.policy_file import default_text, load_policy
from guard.store.flags import Flag
from guard.store.review import Label
from server.launch.policy_reload import PolicySource
from tests.server.face import Face
from tests.server.markup import Markup

STRICT = """refusal = "No."
[default]
threshold = 0.95
action = "block"
[policies.kids.default]
threshold = 0.1
"""


class Critic:
    """Room for any criteria."""

    def prepare(self, criteria: Any) -> None:
        """Accepts them."""


async def post(client: httpx.AsyncClient, path: str, text: str) -> httpx.Response:
    # As browsers send a text area.
    form = {"text": text.replace("\n", "\r\n")}
    return await client.post(f"/console/policy{path}", data=form)


def text_area(response: httpx.Response) -> str:
    return response.text.partition('spellcheck="false"')[2].partition(">\n")[2].partition("</")[0]


async def test_the_text_in_force_is_shown(face: Face) -> None:
    async with face.browser("review") as client:
        shown = await client.get("/console/policy")
    page = Markup(shown.text)
    assert page.forms().get("/console/policy") is not None
    assert "Changing it needs an admin's key." in page.text
    assert "Activate" not in page.text
    assert "# This is the default" in text_area(shown)


async def test_a_text_is_tried_on_the_stored_flags(face: Face, flag: Flag) -> None:
    for review in ("confirmed", None):
        await face.flags.add(replace(flag, harm=0.9, action=Action.REVISE))
        if review:
            await face.reviews.label([1], Label(review="confirmed"), "ada")
    async with face.browser("admin") as client:
        tried = await post(client, "/try", STRICT)
    words = " ".join(Markup(tried.text).text.split())
    assert "default on 2 flags of the last 30 days" in words
    assert "revise pass 2 1 0 2 1" in words
    assert "kids on 2 flags" in words
    assert "revise block 2 1 0 2 1" in words
    assert text_area(tried).startswith("refusal")
    assert face.app.state.setback.policies.current.default.hash == load_policy().hash


async def test_an_activated_text_is_in_force_and_kept(face: Face) -> None:
    state = face.app.state.setback
    state.critic = Critic()
    async with face.browser("admin") as client:
        done = await post(client, "", STRICT)
        assert (done.status_code, done.headers["location"]) == (
            303,
            "/console/policy?said=The+policy+is+in+force.",
        )
        shown = await client.get("/console/policy")
    assert state.policies.current.default.refusal == "No."
    assert state.policy_source.text == STRICT
    page = Markup(shown.text)
    assert "Policy file 1" in page.text
    assert "kids" in page.text
    (entry,) = [one for one in await face.audit.list(9) if one.event == "policy.activated"]
    assert (entry.actor, entry.subject) == ("key 1 (anna)", "policy file 1")


async def test_a_wrong_text_is_told_and_changes_nothing(face: Face) -> None:
    before = face.app.state.setback.policies.current
    wrong = STRICT.replace("0.95", "95")
    async with face.browser("admin") as client:
        for path in ("/try", ""):
            refused = await post(client, path, wrong)
            assert refused.status_code == 400
            assert "policy: line 3: default.threshold: 95 is not" in Markup(refused.text).text
            assert "threshold = 95" in text_area(refused)
    assert face.app.state.setback.policies.current is before
    assert await face.app.state.setback.policy_store.newest() is None


async def test_reviewers_may_not_change_it(face: Face) -> None:
    async with face.browser("review") as client:
        for path in ("/try", ""):
            assert (await post(client, path, STRICT)).status_code == 403


async def test_where_a_file_is_set_the_file_decides(face: Face, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(default_text())
    state = face.app.state.setback
    state.policy_source = PolicySource(file, state.policy_store)
    await state.policy_source.load()
    async with face.browser("admin") as client:
        shown = Markup((await client.get("/console/policy")).text)
        refused = await post(client, "", STRICT)
    assert "SETBACK_POLICY_FILE" in shown.text
    assert "Activate" not in shown.text.replace("Activations", "")
    assert refused.status_code == 409
