"""Every real English text gets a verdict without an error. The practice model does not know the
language, so the figures are printed, not checked. The data is beside the checkout and is not copied
into it.

Every eighth text and every fourth prompt; all of them if pytest is called with `--full`.
"""

import csv
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from sklearn.metrics import average_precision_score

from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import ROOT, Server
from tests.e2e.test_clients import user

pytestmark = [pytest.mark.e2e, pytest.mark.full]

DATA = ROOT.parent / "shared" / "data"
LABELS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
CLIENTS = 8
BATCH = 21
EVERY_TEXT, EVERY_PROMPT = 8, 4


def data_file(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"there is no shared/data/{name} beside the checkout")
    return path


def test_every_moderation_text_gets_a_verdict(
    server: Server, client: openai.OpenAI, full: bool
) -> None:
    with gzip.open(data_file("openai_moderation.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:: 1 if full else EVERY_TEXT]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]

    def judge(batch: list[dict[str, str]]) -> list[float]:
        results = client.moderations.create(input=[row["prompt"] for row in batch]).results
        assert len(results) == len(batch)
        return [sum(r.category_scores.model_dump(by_alias=True).values()) for r in results]

    with ThreadPoolExecutor(CLIENTS) as pool:
        scores = [score for batch_scores in pool.map(judge, batches) for score in batch_scores]
    flagged = [any(row.get(label) == 1 for label in LABELS) for row in rows]
    assert len(scores) == len(rows)
    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores)
    precision = average_precision_score(flagged, scores)
    print(f"\nAUPRC on {len(rows)} texts, {sum(flagged)} flagged: {precision:.3f}")  # noqa: T201


def test_every_xstest_prompt_gets_an_answer_and_a_verdict(
    server: Server, client: openai.OpenAI, full: bool
) -> None:
    with data_file("xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)][:: 1 if full else EVERY_PROMPT]

    def ask(prompt: str) -> str:
        answer = client.chat.completions.create(
            model=MODEL_NAME,
            messages=user(prompt),
            temperature=0,
            moderation={"model": "omni-moderation-latest"},
        )
        assert answer.moderation is not None
        assert answer.moderation.output.type == "moderation_results"
        assert len(answer.moderation.output.results) == 1
        return str((answer.moderation.output.results[0].model_extra or {})["action"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        ended = list(pool.map(ask, prompts))
    withheld = ended.count("revise") + ended.count("block")
    print(f"\nXSTest: {len(ended)} prompts, {withheld} answers withheld")  # noqa: T201
