"""The README's lists are true: tree, settings, metrics. For its commands see e2e/test_readme.py."""

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from refine.evaluation.sets import with_file
from refine.options import RefineOptions
from refine.seed.sets import corpus_sets
from server.settings import Settings
from server.telemetry import metrics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
LISTED_WHOLE = ("server", "guard", "refine")


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def tree() -> dict[str, set[str]]:
    """Folder to the names listed under it."""
    listed: dict[str, set[str]] = {}
    folder = ""
    for line in section("Where things are").splitlines():
        if found := re.match(r"(\w+)/(\s|$)", line):
            folder = found[1]
            listed[folder] = set()
        elif found := re.match(r"  ([\w.]+/?)(\s|$)", line):
            listed[folder].add(found[1].rstrip("/"))
    return listed


def test_every_folder_is_in_the_tree() -> None:
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.glob("**/*.py"))
    }
    ours = folders & {"server", "guard", "refine", "migrations", "tests"}
    assert ours <= set(tree())
    assert all((ROOT / name).is_dir() for name in tree())


def test_every_file_is_in_the_tree() -> None:
    for folder in LISTED_WHOLE:
        names = {path.name for path in (ROOT / folder).iterdir()}
        present = {name for name in names if not name.startswith("__")}
        assert tree()[folder] == present


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section("Settings"), re.MULTILINE)
    settings = {
        name.lower(): default
        for names, default in rows
        for name in re.findall(r"`SETBACK_(\w+)`", names)
    }
    refine = {f"refine_{name}": field for name, field in RefineOptions.model_fields.items()}
    assert set(settings) == (set(Settings.model_fields) | set(refine)) - {"refine"}
    for name, field in refine.items():
        if field.default is not None:
            default = str(field.default).lower()
            assert settings[name] == f"`{default.removesuffix('.0')}`"
    for name in ("reminder", "on_failure", "critic_timeout_s"):
        default = str(Settings.model_fields[name].default).lower()
        assert settings[name] == f"`{default}`"


def test_the_file_shown_is_taken(tmp_path: Path) -> None:
    found = re.search(r"^```jsonl\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    (tmp_path / "mine.jsonl").write_text(found[1])
    bundled = corpus_sets()
    sets = with_file(bundled, tmp_path / "mine.jsonl")
    assert len(sets.harmful) == len(bundled.harmful) + 1
    assert [pair.harmful for pair in sets.pairs[len(bundled.pairs) :]] == [False]


def test_every_metric_is_in_the_table_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(setback_\w+)` \| (\w+) \| (.*?) ?\|", README, re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exposed = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            exposed[name] = (family.type, metric._labelnames)
    assert listed == exposed
