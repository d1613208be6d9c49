"""The traffic page charts the database's rows over the selected span."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from guard.store.flags import Flag
from guard.store.review import Label
from guard.store.traffic import Traffic
from tests.server.face import Face
from tests.server.markup import Markup


async def page(face: Face, query: str = "") -> Markup:
    async with face.client() as client:
        response = await client.get(f"/console/traffic{query}")
    assert response.status_code == 200
    return Markup(response.text)


@pytest.fixture
async def busy(face: Face, flag: Flag) -> Face:
    """Ten answers now, three of them flagged, of which one of two reviewed was dismissed; and a
    thousand eight days ago."""
    now = datetime.now(UTC)
    await face.traffic.add(now, Traffic(answers=10, flagged=3, requests=8, overhead_s=1.0))
    await face.traffic.add(now - timedelta(days=8), Traffic(answers=1000))
    for _ in range(3):
        await face.flags.add(replace(flag, created_at=now))
    await face.reviews.label([1], Label(review="confirmed"), "anna")
    await face.reviews.label([2], Label(review="dismissed"), "anna")
    return face


async def test_traffic_is_charted_and_listed(busy: Face) -> None:
    shown = await page(busy)
    assert "10 answers judged in 24h" in shown.text
    assert len(shown.all("rect")) == 2
    # One period alone has no line yet: the flag rate, the false alarms and the overhead are dots.
    assert len(shown.all("circle")) == 3
    assert shown.all("polyline") == []
    cells = " ".join(shown.text.split())
    assert "30%" in cells
    assert "50%" in cells
    assert "125 ms" in cells


@pytest.mark.parametrize(
    ("query", "answers", "current"),
    [
        ("?span=1h", "10", "1h"),
        ("?span=7d", "10", "7d"),
        ("?span=30d", "1,010", "30d"),
        ("?span=", "10", "24h"),
        ("?span=1y", "10", "24h"),
    ],
)
async def test_a_span_is_chosen(busy: Face, query: str, answers: str, current: str) -> None:
    shown = await page(busy, query)
    assert f"{answers} answers judged in {current}" in shown.text
    (here,) = [link for link in shown.all("a") if link.get("href") == f"?span={current}"]
    assert here["aria-current"] == "page"


async def test_adapter_switches_are_marked_on_every_chart(busy: Face) -> None:
    await busy.runs.start(model="m", model_revision="1", parent=None, seed=0, options={})
    await busy.registry.register(version=1, parent=None, model_revision="1", sha256="a")
    await busy.registry.activate(1, by="run 1", reason="")
    await busy.registry.rollback(by="anna", reason="")
    shown = await page(busy)
    marked = [line for line in shown.all("line") if line["class"] == "switch"]
    assert len(marked) == 2 * 4
    assert "to 1 at" in shown.text
    assert "to base at" in shown.text
