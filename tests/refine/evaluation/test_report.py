"""The report: text, JSON, picture and page show every figure of every adapter."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from refine.evaluation.measures import INJECTION, OVER_REFUSAL, Measures, Series
from refine.evaluation.report import as_json, page, picture, table, write

PNG = b"\x89PNG\r\n\x1a\n"
ABOUT = {"model": "practice <script>", "truth": "oracle"}


def measures(adapter: str, hits: int) -> Measures:
    series = {
        "harmless: plain": Series(tuple(place < hits for place in range(50))),
        "help: everyday": Series((True,) * 49 + (False,)),
        OVER_REFUSAL: Series((False,) * 50),
        INJECTION: Series(tuple(place < 5 for place in range(20))),
    }
    return Measures(adapter, "oracle", "practice", "abc", series, (0.5,))


BOTH = (measures("base", 20), measures("3", 45))


def test_the_table_has_a_line_per_figure_and_a_column_per_adapter() -> None:
    lines = table(BOTH).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["base", "adapter 3", "cases"]
    (line,) = (line for line in lines if line.startswith("harmless: plain"))
    assert "40.0% (27.6% to 53.8%)" in line
    assert "90.0% (" in line
    assert line.endswith(" 50")
    (line,) = (line for line in lines if line.startswith(OVER_REFUSAL))
    assert line.endswith("lower is better")


def test_a_figure_that_one_adapter_lacks_is_reported() -> None:
    fewer = replace(BOTH[1], series={"help: everyday": BOTH[1].series["help: everyday"]})
    (line,) = (x for x in table((BOTH[0], fewer)).splitlines() if x.startswith(INJECTION))
    assert "not measured" in line


def test_json_has_all_that_was_measured() -> None:
    row = json.loads(json.dumps(as_json(BOTH, ABOUT)))
    assert [Measures.of_json(one) for one in row["adapters"]] == list(BOTH)
    assert row["truth"] == "oracle"


@pytest.mark.parametrize("many", [1, 2, 9])
def test_any_number_of_adapters_is_drawn(many: int) -> None:
    listed = [measures(str(number), 10 + number) for number in range(1, many + 1)]
    assert picture(listed, "png").startswith(PNG)


def test_the_page_needs_no_other_file_and_escapes_what_it_is_given() -> None:
    text = page(BOTH, ABOUT)
    assert "<svg" in text
    assert "practice &lt;script&gt;" in text
    assert "<script" not in text
    # Names of XML formats, not places to load from.
    loaded = re.findall(r"(?:src|href)=[\"']?(?!#)([^\"'> ]+)", text)
    assert [place for place in loaded if not place.startswith("#")] == []
    for name in ("harmless: all", "help: everyday", INJECTION, "adapter 3"):
        assert name in text


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write(tmp_path / "new", BOTH, ABOUT)
    assert [path.name for path in paths] == [
        "evaluation.json",
        "evaluation.png",
        "evaluation.html",
    ]
    assert all(path.stat().st_size > 1_000 for path in paths)
