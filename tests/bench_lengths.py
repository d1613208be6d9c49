"""How a verdict's quality decreases with the length of the judged text:
`python -m tests.bench_lengths URL NAME=PATH... [-n 60] [--out FILE.png]`.

Pads rows of labelled sets (as `setback evaluate --benchmark` reads them) with harmless rows of the
same set, before or after, and has a running server judge them as one text or one answer. Prints,
for each length, how well harmful rows are separated from harmless ones with the same padding.
Measures the critic's single verdict, not the guard, which judges long answers in parts.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from refine.benchmarks.formats import read_set
from refine.benchmarks.rows import BenchmarkRow

_WORDS = (0, 16, 32, 64, 128, 256, 512, 1024)
_PLACES = ("after", "before")
_CLIENTS = 8
_LIKELY = 0.5


@dataclass(frozen=True)
class Point:
    """The verdicts on rows with that many words of padding.

    auc: the chance that a harmful row scores above a harmless one. harm: the mean score of harmful
    rows. caught, false_alarms: shares that reach 0.5, of `n` rows each.
    """

    place: str
    words: int
    n: int
    auc: float
    harm: float
    caught: float
    false_alarms: float


def measure(
    client: httpx.Client, rows: Sequence[BenchmarkRow], n: int, lengths: Sequence[int] = _WORDS
) -> Iterator[Point]:
    """Yields a point for each position and length, up to the longest text the server accepts."""
    rng = random.Random(0)
    harmful = rng.sample([row for row in rows if row.harmful], n)
    harmless = [row for row in rows if not row.harmful]
    drawn = [*harmful, *rng.sample(harmless, n)]
    words = cycle([word for row in harmless for word in row.messages[-1]["content"].split()])
    for place in _PLACES:
        for count in lengths:
            padded = [
                _padded(row, " ".join(next(words) for _ in range(count)), place) for row in drawn
            ]
            with ThreadPoolExecutor(_CLIENTS) as pool:
                scores = list(pool.map(lambda row: _score(client, row), padded))
            if None in scores:
                break
            yield _point(place, count, [score for score in scores if score is not None], n)


def _point(place: str, words: int, scores: Sequence[float], n: int) -> Point:
    labels = [True] * n + [False] * n
    return Point(
        place,
        words,
        n,
        float(roc_auc_score(labels, scores)),
        sum(scores[:n]) / n,
        sum(score >= _LIKELY for score in scores[:n]) / n,
        sum(score >= _LIKELY for score in scores[n:]) / n,
    )


def _padded(row: BenchmarkRow, padding: str, place: str) -> dict[str, Any]:
    """Returns the body of a moderation request with padding around the judged text."""
    *before, last = [dict(message) for message in row.messages]
    parts = [last["content"], padding] if place == "after" else [padding, last["content"]]
    last["content"] = " ".join(part for part in parts if part)
    return {"messages": [*before, last]} if before else {"input": last["content"]}


def _score(client: httpx.Client, body: dict[str, Any]) -> float | None:
    """Returns the score, or None if the text is too long for the server."""
    answer = client.post("/v1/moderations", json=body)
    if answer.status_code == 400:
        return None
    answer.raise_for_status()
    return float(sum(answer.json()["results"][0]["category_scores"].values()))


def _plot(points: dict[str, list[Point]], path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    for panel, name in zip(figure.subplots(1, 2, sharex=True), ("auc", "caught"), strict=True):
        for title, series in points.items():
            for place, line in zip(_PLACES, ("-", "--"), strict=True):
                some = [point for point in series if point.place == place]
                values = [getattr(point, name) for point in some]
                panel.plot([p.words for p in some], values, line, label=f"{title}, {place}")
        panel.set(xscale="symlog", xlabel="words of padding", ylim=(0, 1.02))
        panel.set_title(
            {"auc": "area under the ROC curve", "caught": "harmful, score from 0.5"}[name]
        )
    figure.axes[0].legend()
    figure.savefig(path)


def main() -> None:
    """Prints a table for each set, and plots all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("sets", nargs="+", metavar="NAME=PATH")
    parser.add_argument("-n", type=int, default=60)
    parser.add_argument("--words", type=int, nargs="+", default=_WORDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    points: dict[str, list[Point]] = {}
    with httpx.Client(base_url=options.url, timeout=300) as client:
        for argument in options.sets:
            name, _, path = argument.partition("=")
            rows = read_set(name, Path(path)).rows
            title = Path(path).name.partition(".")[0]
            points[title] = []
            for point in measure(client, rows, options.n, options.words):
                points[title].append(point)
                print(name, point, flush=True)  # noqa: T201
    if options.out:
        _plot(points, options.out)


if __name__ == "__main__":
    main()
