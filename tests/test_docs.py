"""The documentation is true: its tree, tables and settings, and the pages and files that it names.
e2e/test_readme.py runs its commands.
"""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from refine.evaluation.labelled_file import with_file
from refine.seed.sets import corpus_sets
from server.telemetry import metrics
from tests import docs_dependencies, docs_settings

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
README_LINES = 230
LISTED_WHOLE = ("server", "guard", "refine")

LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(r"(?<![\w/.-])(?:server|guard|refine|migrations|tests|docs)/[\w./-]*\w/?")


def section(page: str, title: str) -> str:
    """The text under a heading."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    assert match, f"no section {title} in {page}"
    return match[1]


def tree() -> dict[str, set[str]]:
    """Folder to the names listed under it."""
    listed: dict[str, set[str]] = {}
    folder = ""
    for line in section("docs/architecture.md", "Where things are").splitlines():
        if match := re.match(r"(\w+)/(\s|$)", line):
            folder = match[1]
            listed[folder] = set()
        elif match := re.match(r"  ([\w./]+)(\s|$)", line):
            listed[folder].add(match[1].rstrip("/"))
    return listed


def contents(folder: Path) -> set[str]:
    """A folder's files and sub-folders, and the packages further below."""
    top = {path.name for path in folder.iterdir() if not path.name.startswith("__")}
    packages = {path.parent.relative_to(folder) for path in folder.glob("*/**/__init__.py")}
    return top | {package.as_posix() for package in packages}


def anchors(page: str) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_folder_is_in_the_tree() -> None:
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.glob("**/*.py"))
    }
    packages = folders & {"server", "guard", "refine", "migrations", "tests"}
    assert packages <= set(tree())
    assert all((ROOT / name).is_dir() for name in tree())


@pytest.mark.parametrize("folder", LISTED_WHOLE)
def test_every_file_is_in_the_tree(folder: str) -> None:
    assert tree()[folder] == contents(ROOT / folder)


def test_the_settings_page_is_what_the_settings_make() -> None:
    assert PAGES["docs/settings.md"] == docs_settings.page(), "run `make docs`"


def test_the_dependencies_page_is_what_is_pinned() -> None:
    assert PAGES["docs/dependencies.md"] == docs_dependencies.page(), "run `make docs`"
    assert sorted(docs_dependencies.REASONS) == sorted(docs_dependencies.direct_dependencies())


def test_the_file_shown_is_taken(tmp_path: Path) -> None:
    (shown,) = (
        block
        for page in PAGES.values()
        for block in re.findall(r"^```jsonl\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    (tmp_path / "mine.jsonl").write_text(shown)
    bundled = corpus_sets()
    sets = with_file(bundled, tmp_path / "mine.jsonl")
    assert len(sets.harmful) == len(bundled.harmful) + 1
    assert [pair.harmful for pair in sets.pairs[len(bundled.pairs) :]] == [False]


def test_every_metric_is_in_the_table_with_its_type_and_labels() -> None:
    page = PAGES["docs/operations.md"]
    rows = re.findall(r"^\| `(setback_\w+)` \| (\w+) \| (.*?) ?\|", page, re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exposed = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            exposed[name] = (family.type, metric._labelnames)
    assert listed == exposed


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= README_LINES


def test_the_readme_links_every_page() -> None:
    linked = {target.partition("#")[0] for target in LINK.findall(PAGES["README.md"])}
    assert set(PAGES) - {"README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    for target in LINK.findall(PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = here.parent / path if path else here
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text("utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_is_there(page: str) -> None:
    named = set(NAMED_PATH.findall(PAGES[page]))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
