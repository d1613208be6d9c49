"""`setback evaluate`: its output and its errors, with a server of our own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.cli.main import app
from tests.databases import migrated_file
from tests.json_server import JsonHandler, serving

INFO = {
    "model": "m",
    "base": "some/model",
    "model_revision": "r1",
    "max_model_len": 1024,
    "max_lora_rank": 16,
    "active": 2,
    "critique": "yes_no",
}


class ModelAccess(JsonHandler):
    """The refine routes of a model that says "ok"; nothing is harmful or helpful."""

    info: dict[str, Any] = INFO
    adapters: list[object] = []

    def do_GET(self) -> None:
        self.send(200, self.info)

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("/lengths"):
            self.send(200, {"lengths": [1] * len(body["conversations"])})
            return
        self.adapters.append(body["adapter"])
        if body["adapter"] == 404:
            self.send(404, {"error": {"message": "there is no adapter 404"}})
            return
        n = len(body.get("conversations") or body.get("texts"))
        if self.path.endswith("/answers"):
            self.send(200, {"adapter": "x", "answers": ["ok"] * n})
        else:
            verdict = {"harm": 0.1, "category_scores": None}
            self.send(200, {"adapter": "x", "verdicts": [verdict] * n})


@pytest.fixture
def model_access(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with the refine routes."""
    monkeypatch.setattr(ModelAccess, "adapters", [])
    with serving(ModelAccess) as url:
        yield url


@pytest.fixture(autouse=True)
def _migrated(clean_folder: Path) -> None:
    migrated_file(Path("data/setback.db"))


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def test_base_and_active_are_measured_by_default(model_access: str) -> None:
    result = evaluate("--server", model_access)
    assert result.exit_code == 0, result.output
    assert "adapter 2" in result.stdout
    assert "truth: reference: the base" in result.stdout
    written = json.loads(Path("data/evaluation/evaluation.json").read_text())
    assert [one["adapter"] for one in written["adapters"]] == ["base", "2"]
    assert Path("data/evaluation/evaluation.png").is_file()
    assert "active" not in ModelAccess.adapters


def test_json_can_be_printed_instead_of_the_table(model_access: str) -> None:
    result = evaluate("2", "--server", model_access, "--json", "--out", "elsewhere")
    row = json.loads(result.stdout)
    assert [one["adapter"] for one in row["adapters"]] == ["2"]
    assert Path("elsewhere/evaluation.html").is_file()


def test_each_adapter_is_measured_once(model_access: str) -> None:
    row = json.loads(evaluate("active", "2", "base", "--server", model_access, "--json").stdout)
    assert [one["adapter"] for one in row["adapters"]] == ["2", "base"]


def test_a_users_file_is_measured_besides(model_access: str) -> None:
    Path("mine.jsonl").write_text(
        '{"request": "a", "label": "harmless"}\n'
        '{"request": "a", "answer": "b", "label": "harmful"}\n'
    )
    result = evaluate("base", "--file", "mine.jsonl", "--server", model_access)
    assert "help: file" in result.stdout
    assert "critic on file: harmful caught" in result.stdout
    assert "seed corpus and mine.jsonl" in result.stdout


def test_a_wrong_file_is_refused_by_line(model_access: str) -> None:
    Path("mine.jsonl").write_text('{"request": "a"}\n')
    result = evaluate("--file", "mine.jsonl", "--server", model_access)
    assert result.exit_code == 1
    assert "line 1: label: Field required" in result.stderr


def test_the_practice_model_is_measured_by_its_oracle(
    model_access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelAccess, "info", {**INFO, "world": "practice"})
    assert "truth: practice oracle" in evaluate("base", "--server", model_access).stdout


def test_the_servers_error_about_an_adapter_is_printed(model_access: str) -> None:
    result = evaluate("404", "--server", model_access)
    assert result.exit_code == 1
    assert "there is no adapter 404" in result.stderr


@pytest.mark.parametrize("name", ["0", "-1", "best", "1.5", "٣"])
def test_anything_but_an_adapter_is_refused(name: str) -> None:
    result = evaluate("--", name)
    assert result.exit_code == 2
    assert "base, active or a number" in " ".join(result.stderr.replace("│", " ").split())


def test_a_server_that_is_not_there_is_named() -> None:
    result = evaluate("--server", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9" in result.stderr
    assert "setback serve" in result.stderr
