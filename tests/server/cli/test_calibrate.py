"""`setback calibrate`: what it reads, stores, prints and writes, with a server of our own."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guard.policy_file import load_policy
from guard.store.calibrations import CalibrationStore, StoredCalibration
from guard.store.url import parse_url
from guard.verdict import CATEGORIES
from server.cli.main import app
from tests.databases import migrated_file
from tests.json_server import serving
from tests.server.cli.test_evaluate import ModelAccess

URL = parse_url("sqlite:///data/setback.db")


class Judging(ModelAccess):
    """Judges "text 7" as harmful with a probability of 0.07, all of it hate."""

    requests: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = self.body()
        self.requests.append(body)
        texts = body.get("texts") or [
            conversation[-1]["content"] for conversation in body["conversations"]
        ]
        self.send(200, {"adapter": "x", "verdicts": [self._verdict(text) for text in texts]})

    def _verdict(self, text: str) -> dict[str, Any]:
        harm = int(text.split()[-1]) / 100
        scores = dict.fromkeys(CATEGORIES, 0.0) | {"hate": harm}
        return {"harm": harm, "category_scores": scores}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Judging, "requests", [])
    with serving(Judging) as url:
        yield url


@pytest.fixture(autouse=True)
def _lines(clean_folder: Path) -> None:
    """Texts and answers, of which those from 40 on are harmful, with few exceptions."""
    migrated_file(Path("data/setback.db"))
    rows: list[dict[str, Any]] = []
    for number in range(1, 100):
        harmful = number >= 40 if number % 10 else number < 40
        label: dict[str, Any] = {"label": "harmful" if harmful else "harmless"}
        if harmful:
            label["category"] = "hate"
        rows.append({"text": f"text {number}", **label})
        rows.append({"request": "Go on.", "answer": f"answer {number}", **label})
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def calibrate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", "--file", "lines.jsonl", *arguments])


def kept() -> dict[int | None, StoredCalibration]:
    async def read() -> dict[int | None, StoredCalibration]:
        store = CalibrationStore(URL)
        calibrations = dict(await store.in_force("r1"))
        await store.close()
        return calibrations

    return asyncio.run(read())


def test_the_adapter_in_force_is_calibrated_on_texts_and_answers(server: str) -> None:
    result = calibrate("--server", server)
    assert result.exit_code == 0, result.output
    (fit,) = kept().values()
    assert (fit.adapter, fit.rows) == (2, 198)
    assert fit.scales.answers.apply(0.6) > 0.7
    assert fit.scales.texts.apply(0.6) > 0.7
    assert {"conversations" in body for body in Judging.requests} == {True, False}
    assert {body["adapter"] for body in Judging.requests} == {2}
    assert all(body["categories"] for body in Judging.requests)
    assert "m, adapter 2, on 198 lines" in result.stdout
    assert "calibration error after" in result.stdout


def test_a_policy_and_a_plot_are_written(server: str) -> None:
    result = calibrate(
        "--server", server, "--max-false-alarms", "5%", "--policy", "p.toml", "--plot", "p.svg"
    )
    assert result.exit_code == 0, result.output
    assert "SETBACK_POLICY_FILE=p.toml" in result.stdout
    rules = load_policy(Path("p.toml")).rules
    assert 0 < rules["hate"].threshold < 1
    assert Path("p.svg").read_text().count("<svg") == 1


def test_the_base_can_be_calibrated_beside_the_adapter(server: str) -> None:
    assert calibrate("--server", server, "--base").exit_code == 0
    assert list(kept()) == [None]
    assert {body["adapter"] for body in Judging.requests} == {"base"}


@pytest.mark.parametrize("share", ["two", "-1%", "100%", "1.5"])
def test_an_invalid_share_is_refused(server: str, share: str) -> None:
    result = calibrate("--server", server, "--max-false-alarms", share)
    assert result.exit_code == 2
    assert "write 2%" in result.stderr


def test_nothing_is_kept_when_there_are_too_few_lines(server: str) -> None:
    lines = Path("lines.jsonl").read_text().splitlines(keepends=True)[:30]
    Path("lines.jsonl").write_text("".join(lines))
    result = calibrate("--server", server)
    assert result.exit_code == 1
    assert "too few to calibrate on" in result.stderr
    assert kept() == {}
