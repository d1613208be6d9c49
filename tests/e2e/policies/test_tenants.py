"""Several policies on one server: by key, by a header that makes it stricter, in shadow, and
exchanged while it runs."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from guard.policy import Action
from guard.policy_file import load_policies
from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from server.cli.main import app
from tests.e2e.browser import DESKTOP, LIGHT, PHONE, browsing
from tests.e2e.conftest import SETBACK, read_metric, running_server
from tests.e2e.policies.conftest import EVERYDAY, HARMFUL, Tenants, write

pytestmark = pytest.mark.e2e

BLOCKS = 'refusal = "Not in this house."\n[default]\naction = "block"\n'


def test_each_tenant_has_its_own_policy(tenants: Tenants) -> None:
    policies = load_policies(tenants.file)
    strict = tenants.ask("strict", EVERYDAY)
    assert strict.parse().choices[0].message.content == "Ask a grown-up."
    assert strict.parse().choices[0].finish_reason == "content_filter"
    assert strict.headers["x-setback-policy"] == f"strict@{policies.named['strict'].hash}"
    assert tenants.flag(strict.parse().id).policy_hash == policies.named["strict"].hash
    plain = tenants.ask("plain", EVERYDAY)
    assert plain.parse().choices[0].finish_reason == "stop"
    assert plain.headers["x-setback-policy"] == f"default@{policies.default.hash}"
    assert tenants.said("plain", HARMFUL) == "Not here."
    for policy in ("strict", "default"):
        counted = f'setback_actions_total{{action="block",adapter="base",policy="{policy}"}}'
        assert read_metric(tenants.server, counted) >= 1


def test_a_policy_in_shadow_withholds_nothing_and_records_all(tenants: Tenants) -> None:
    answer = tenants.ask("watched", HARMFUL).parse()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.moderation is None
    flag = tenants.flag(answer.id)
    assert (flag.action, flag.answer) == (Action.PASS, answer.choices[0].message.content)


def test_a_caller_can_ask_for_a_stricter_policy_alone(tenants: Tenants) -> None:
    wanted = {"x-setback-policy": "strict"}
    assert tenants.said("plain", EVERYDAY, **wanted) == "Ask a grown-up."
    for key, name in (("strict", "default"), ("plain", "watched"), ("plain", "no such")):
        with pytest.raises(openai.BadRequestError) as refused:
            tenants.ask(key, EVERYDAY, **{"x-setback-policy": name})
        assert (refused.value.code, refused.value.param) == ("policy_refused", "x-setback-policy")


def test_moderations_follow_the_callers_policy(tenants: Tenants) -> None:
    for key, flagged in (("plain", False), ("strict", True)):
        with tenants.client(key) as client:
            (result,) = client.moderations.create(input=EVERYDAY).results
        assert result.flagged is flagged


def test_a_key_whose_policy_is_gone_is_told(tenants: Tenants) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        tenants.ask("gone", EVERYDAY)
    assert (failed.value.status_code, failed.value.code) == (503, "policy_unknown")


def test_a_changed_file_comes_into_force_and_a_wrong_one_does_not(tenants: Tenants) -> None:
    before = tenants.in_force()["named"][0]["hash"]
    write(tenants.file, "Ask your teacher.")
    _wait(lambda: tenants.in_force()["named"][0]["hash"] != before)
    assert tenants.said("strict", EVERYDAY) == "Ask your teacher."
    tenants.file.write_text("refusal = 3\n")
    _wait(lambda: "line 1: refusal: 3 is not a text" in tenants.server.log.read_text())
    assert tenants.said("strict", EVERYDAY) == "Ask your teacher."
    metrics = httpx.get(f"{tenants.server.base_url}/metrics").text
    assert 'setback_policy_reloads_total{outcome="refused"} 1.0' in metrics
    headers = {"authorization": f"Bearer {tenants.keys['admin']}"}
    url = f"{tenants.server.base_url}/v1/guard/policies"
    versions = httpx.get(url, headers=headers).json()["data"]
    refusals = [one["content"]["refusal"] for one in versions if one["name"] == "strict"]
    assert refusals == ["Ask your teacher.", "Ask a grown-up."]


def test_a_policy_is_edited_tried_and_activated_in_a_browser(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/flags.db"
    migrate.upgrade(parse_url(database))
    with (
        running_server(
            tmp_path, database, lambda port: [SETBACK, "serve", "practice", "--port", str(port)]
        ) as server,
        browsing(server.base_url, tmp_path / "browser") as browser,
        server.openai() as client,
    ):

        def said(content: str) -> str | None:
            answer = client.chat.completions.create(
                model=MODEL_NAME, messages=[{"role": "user", "content": content}], temperature=0
            )
            return answer.choices[0].message.content

        said(HARMFUL)
        browser.open("/console/policy")
        for text, button, told in (
            ("refusal = 3", "Try on the flags of 30 days", "line 1: refusal: 3 is not a text"),
            (BLOCKS, "Try on the flags of 30 days", "default on 1 flags of the last 30 days"),
            (BLOCKS, "Activate", "The policy is in force."),
        ):
            browser.fill("textarea", text)
            browser.click(button)
            browser.wait_for(told)
        for size in (PHONE, DESKTOP):
            browser.look(size, LIGHT)
            assert browser.overflow() <= 0
            assert not browser.violations()
        assert "Policy file 1" in browser.text
        assert said(HARMFUL) == "Not in this house."


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


CRITERIA = """
[[criteria]]
name = "roses"
words = ["rose"]

[[criteria]]
name = "asks"
description = "It asks for help."
applies_to = ["input"]
"""


def test_a_policy_is_tried_on_labelled_lines(tenants: Tenants, tmp_path: Path) -> None:
    lines = [
        {"request": HARMFUL, "answer": HARMFUL, "label": "harmful", "category": "illicit"},
        {"request": EVERYDAY, "answer": "Water a rose at noon.", "label": "harmless"},
        {"request": EVERYDAY, "label": "harmless", "criterion": "asks"},
    ]
    file, labelled = tmp_path / "policy.toml", tmp_path / "lines.jsonl"
    file.write_text(CRITERIA)
    labelled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("policy", "try", str(file), "--labelled", str(labelled), "--json")
    reach = ("--server", tenants.server.base_url)
    url = tenants.server.database.render_as_string(hide_password=False)
    done = CliRunner().invoke(app, [*command, *reach], env={"DATABASE_URL": url})
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rules = {one["rule"]: one for one in result["tried"]["rules"]}
    assert (rules["roses"]["false_alarms"]["hits"], rules["roses"]["false_alarms"]["n"]) == (1, 2)
    assert (rules["asks"]["caught"]["n"], rules["asks"]["false_alarms"]["n"]) == (1, 0)
    assert result["in_force"]["false_alarms"]["n"] == 1
