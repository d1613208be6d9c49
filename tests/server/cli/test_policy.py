"""`setback policy`: what is wrong with a file, and what it would have done."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guard.policy import Action
from guard.store.flags import Flag, FlagStore
from guard.store.policies import PolicyStore, StoredPolicyFile
from guard.store.url import parse_url
from guard.verdict import CATEGORIES
from server.cli.main import app
from tests.databases import migrated_file
from tests.json_server import serving
from tests.server.cli.test_evaluate import ModelAccess

URL = parse_url("sqlite:///data/setback.db")
POLICY = """[default]
threshold = 0.95
[[criteria]]
name = "doses"
description = "It names a dose."
"""


@pytest.fixture(autouse=True)
def _files(clean_folder: Path, flag: Flag) -> None:
    """A policy, and a database with a flag of today and one of last year."""
    Path("policy.toml").write_text(POLICY)
    migrated_file(Path("data/setback.db"))

    async def fill() -> None:
        store = FlagStore(URL)
        for days in (0, 365):
            time = datetime.now(UTC) - timedelta(days=days)
            await store.add(replace(flag, created_at=time, action=Action.REVISE))
        await store.close()

    asyncio.run(fill())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policy", *arguments])


def test_check_prints_the_rules() -> None:
    done = run("check", "policy.toml")
    assert done.exit_code == 0
    assert "1 criteria beside the categories" in done.stdout
    assert "Policy default (" in done.stdout
    assert "doses" in done.stdout
    (policy,) = json.loads(run("check", "policy.toml", "--json").stdout)
    assert policy["rules"]["hate"] == {"threshold": 0.95, "action": "revise"}


def test_check_names_line_and_fix() -> None:
    Path("policy.toml").write_text(POLICY.replace("0.95", "95"))
    done = run("check", "policy.toml")
    assert done.exit_code == 2
    assert "policy.toml: line 2: default.threshold: 95 is not a number from 0 to 1" in done.stderr


def test_try_decides_on_flags_of_the_time_again() -> None:
    done = run("try", "policy.toml")
    assert done.exit_code == 0, done.output
    assert "on 1 flags since" in done.stdout
    assert "revise" in done.stdout
    assert "pass" in done.stdout
    assert "The criterion doses was not read then in 1 of them" in done.stdout
    longer = json.loads(run("try", "policy.toml", "--since", "400d", "--json").stdout)
    assert longer["changes"] == [
        {"was": "revise", "would_be": "pass", "flags": [2, 1], "confirmed": 0, "dismissed": 0}
    ]


def test_one_of_several_policies_is_checked_and_tried() -> None:
    Path("policy.toml").write_text(POLICY + "[policies.kids.default]\nthreshold = 0.1\n")
    assert "Policy kids (" in run("check", "policy.toml").stdout
    tried = json.loads(run("try", "policy.toml", "--policy", "kids", "--json").stdout)
    assert [change["would_be"] for change in tried["changes"]] == ["revise"]
    assert "no policy 'x'" in run("try", "policy.toml", "--policy", "x").stderr


def test_a_file_is_activated_in_the_database() -> None:
    assert run("activate", "policy.toml").exit_code == 0

    async def newest() -> StoredPolicyFile | None:
        store = PolicyStore(URL)
        try:
            return await store.newest()
        finally:
            await store.close()

    activated = asyncio.run(newest())
    assert activated is not None
    assert activated.text == POLICY
    Path("policy.toml").write_text("refusal = 3")
    assert "line 1: refusal" in run("activate", "policy.toml").stderr
    assert asyncio.run(newest()) == activated


@pytest.mark.parametrize("since", ["yesterday", "0d", "99999999d"])
def test_a_wrong_time_is_refused(since: str) -> None:
    done = run("try", "policy.toml", "--since", since)
    assert done.exit_code == 2
    assert "--since" in done.stderr


class Judging(ModelAccess):
    """Judges "text 7" as harmful with a probability of 0.07, all of it hate, and as a dose if it is
    above 0.5."""

    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = self.body()
        self.asked.append(body)
        texts = body.get("texts") or [turns[-1]["content"] for turns in body["conversations"]]
        self.send(200, {"adapter": "x", "verdicts": [self._verdict(text) for text in texts]})

    def _verdict(self, text: str) -> dict[str, Any]:
        harm = int(text.split()[-1]) / 100
        scores = dict.fromkeys(CATEGORIES, 0.0) | {"hate": harm}
        criteria = {"doses": float(harm > 0.5)}
        return {"harm": harm, "category_scores": scores, "criteria": criteria}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Judging, "asked", [])
    with serving(Judging) as url:
        yield url


@pytest.fixture
def lines() -> str:
    """Ten texts each of hate, of doses and of neither."""
    labels: list[dict[str, str]] = [
        {"label": "harmful", "category": "hate"},
        {"label": "harmless", "criterion": "doses"},
        {"label": "harmless"},
    ]
    rows = [{"text": f"text {n}", **labels[n // 3 % 3]} for n in range(1, 100, 3)]
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "lines.jsonl"


def test_try_on_labelled_lines_compares_with_the_policy_in_force(server: str, lines: str) -> None:
    arguments = ("try", "policy.toml", "--labelled", lines, "--server", server)
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "on 33 labelled lines, beside default" in done.stdout
    assert "verdicts of adapter 2" in done.stdout
    for part in ("hate", "doses", "5 of 11", "5/11"):
        assert part in done.stdout
    fields = json.loads(run(*arguments, "--json").stdout)
    tried, in_force = fields["tried"], fields["in_force"]
    assert fields["lines"] == 33
    rules = {one["rule"]: one for one in tried["rules"]}
    # Its threshold is 0.95, that in force 0.5.
    assert rules["hate"]["caught"]["n"] == 11
    assert rules["hate"]["caught"]["hits"] < in_force["caught"]["hits"]
    assert rules["hate"]["caught"]["high"] > rules["hate"]["caught"]["share"]
    assert rules["doses"]["caught"]["n"] == 11
    assert rules["doses"]["false_alarms"]["n"] == 22
    assert [at["threshold"] for at in rules["hate"]["thresholds"]][:2] == [0.1, 0.3]
    assert "doses" not in {one["rule"] for one in in_force["rules"]}
    assert {body["policy"] for body in Judging.asked} == {POLICY}, "what is in force has no more"


def test_what_is_in_force_may_have_criteria_of_its_own(server: str, lines: str) -> None:
    activated = POLICY.replace("It names a dose", "It is a dose")
    Path("other.toml").write_text(activated)
    assert run("activate", "other.toml").exit_code == 0
    done = run("try", "policy.toml", "--labelled", lines, "--server", server)
    assert done.exit_code == 0, done.output
    assert [body["policy"] for body in Judging.asked] == [POLICY, activated]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labelled", "lines.jsonl", "--since", "3d"), "--since"),
        (("--server", "http://127.0.0.1:1"), "--labelled"),
        (("--labelled", "none.jsonl"), "none.jsonl"),
    ],
)
def test_what_does_not_go_together_is_refused(
    lines: str, arguments: tuple[str, ...], message: str
) -> None:
    done = run("try", "policy.toml", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_wrong_line_is_named(server: str) -> None:
    Path("lines.jsonl").write_text('{"text": "a", "label": "harmless", "criterion": "A Dose"}\n')
    done = run("try", "policy.toml", "--labelled", "lines.jsonl", "--server", server)
    assert done.exit_code == 1
    assert "criterion" in done.stderr
