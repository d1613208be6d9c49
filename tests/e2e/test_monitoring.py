"""The dashboard and the alert rules use metrics that the running server exposes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import openai
import promql_parser
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, Call, MatchOp, VectorSelector

from guard.errors import CriticUnavailable, StoreUnavailable
from guard.observer import RevisionOutcome
from guard.policy import Action
from guard.store.runs import RunStatus
from refine.practice.integrity import MODEL_NAME
from server.routes.open import GUARDED
from server.settings import Settings
from server.telemetry import metrics
from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e

FOLDER = Path(metrics.__file__).with_name("monitoring")
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text("utf-8"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$instance": ".*"}
DECLARED_LABELS = {
    family.name: metric._labelnames
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.describe()
}
"""The labels of each of our metrics."""

SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""

VALUES: dict[str, set[str]] = {
    "action": {action.value for action in Action},
    "category": {"none"},
    "code": {CriticUnavailable.code, StoreUnavailable.code},
    "source": {"cached", "computed"},
    "outcome": set(get_args(RevisionOutcome)),
    "status": set(get_args(RunStatus)),
}
"""Those of our labels: a wrong one would match nothing, for ever."""


def expressions() -> Iterator[tuple[str, str]]:
    """Yields every expression of both files, with its place."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


EXPRESSIONS = list(expressions())


@dataclass(frozen=True)
class Series:
    """kind: counter, gauge or histogram. labels: those of all its samples. samples: of each."""

    kind: str
    labels: set[str]
    samples: list[dict[str, str]]


@pytest.fixture(scope="module")
def exposed(
    server: Server, client: openai.OpenAI, everyday: str, harmful: str
) -> dict[str, Series]:
    """The series in /metrics after some traffic, by name."""
    for content in (everyday, harmful):
        messages: Any = [{"role": "user", "content": content}]
        client.chat.completions.create(model=MODEL_NAME, messages=messages, temperature=0)
    with server.http() as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
    return {name: series for family in families for name, series in _series(family)}


def _series(family: Metric) -> Iterator[tuple[str, Series]]:
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
    for suffix in suffixes.get(family.type, [""]):
        name = family.name + suffix
        samples = [sample.labels for sample in family.samples if sample.name == name]
        labels = {label for sample in samples for label in sample} | _declared_labels(family.name)
        yield name, Series(family.type, labels, samples)


def _declared_labels(name: str) -> set[str]:
    """Returns the labels that our metrics declare: most have no samples yet."""
    return set(DECLARED_LABELS[name]) if name in DECLARED_LABELS else set()


def parsed(expression: str) -> Any:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return promql_parser.parse(expression)


def parts(node: Any) -> Iterator[Any]:
    """Yields the node and all its descendants."""
    yield node
    below = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for part in [*below, *getattr(node, "args", [])]:
        if part is not None:
            yield from parts(part)


def selectors(node: Any) -> list[VectorSelector]:
    return [part for part in parts(node) if isinstance(part, VectorSelector)]


@pytest.mark.parametrize(
    "expression", [e for _, e in EXPRESSIONS], ids=[where for where, _ in EXPRESSIONS]
)
def test_every_metric_and_label_is_there(expression: str, exposed: dict[str, Series]) -> None:
    node = parsed(expression)
    assert selectors(node)
    for selector in selectors(node):
        series = exposed[str(selector.name)]
        matchers = [m for m in selector.matchers.matchers if m.name not in SCRAPED]
        assert {matcher.name for matcher in matchers} <= series.labels
        if str(selector.name).startswith("setback_"):
            for matcher in matchers:
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]
        else:
            assert any(all(_matches(m, sample) for m in matchers) for sample in series.samples)
    for part in parts(node):
        if isinstance(part, AggregateExpr) and part.modifier is not None:
            below = (exposed[str(selector.name)].labels for selector in selectors(part))
            assert set(part.modifier.labels) <= SCRAPED.union(*below)


def _matches(matcher: Any, sample: dict[str, str]) -> bool:
    value, expected = sample[matcher.name], str(matcher.value)
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        return (value == expected) is bool(matcher.op == MatchOp.Equal)
    return bool(re.fullmatch(expected, value)) is bool(matcher.op == MatchOp.Re)


@pytest.mark.parametrize(
    "expression", [e for _, e in EXPRESSIONS], ids=[where for where, _ in EXPRESSIONS]
)
def test_rates_are_of_what_only_grows(expression: str, exposed: dict[str, Series]) -> None:
    for part in parts(parsed(expression)):
        if isinstance(part, Call) and part.func.name in ("rate", "increase"):
            (selector,) = selectors(part)
            assert exposed[str(selector.name)].kind in ("counter", "histogram")


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {str(s.name) for panel in PANELS for t in panel["targets"] for s in _in(t["expr"])}
    shown = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in shown}
    assert set(DECLARED_LABELS) <= shown


def _in(expression: str) -> list[VectorSelector]:
    return selectors(parsed(expression))


def test_guarded_routes_are_those_that_are_asked_for() -> None:
    handlers = {
        matcher.value
        for _, expression in EXPRESSIONS
        for selector in _in(expression)
        for matcher in selector.matchers.matchers
        if matcher.name == "handler"
    }
    (pattern,) = handlers
    assert {route for route in GUARDED if re.fullmatch(pattern, route)} == GUARDED
    assert not re.fullmatch(pattern, "/v1/models")


def test_the_dashboard_can_be_imported_with_any_data_source() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    targets = [target for panel in PANELS for target in panel["targets"]]
    lists = [DASHBOARD["annotations"]["list"], [variables["instance"]]]
    for item in [*PANELS, *targets, *(one for several in lists for one in several)]:
        assert item["datasource"] == chosen
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(panel["title"] and panel["description"] for panel in PANELS)


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        assert set(rule["annotations"]) == {"summary", "description"}
        words = " ".join(rule["annotations"].values())
        assert {name.lower() for name in re.findall(r"SETBACK_(\w+)", words)} <= set(
            Settings.model_fields
        )
        for label in re.findall(r"\$labels\.(\w+)", words):
            kept = (p.modifier for p in parts(parsed(rule["expr"])) if isinstance(p, AggregateExpr))
            assert any(modifier and label in modifier.labels for modifier in kept)
