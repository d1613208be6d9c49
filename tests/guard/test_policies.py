"""Which policy a request gets, and how the policies of one file extend each other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from guard.errors import PolicyInvalid, PolicyRefused, PolicyUnknown
from guard.policies import PolicySet
from guard.policy import Action, Rule
from guard.policy_file import load_policies, load_policy
from tests.guard.test_policy import verdict

FILE = """
refusal = "No."

[default]
threshold = 0.6

[categories.violence]
threshold = 0.9
action = "annotate"

[[criteria]]
name = "doses"
description = "It names a dose."
action = "annotate"

[policies.kids]
refusal = "Ask a grown-up."
models = ["tutor"]

[policies.kids.default]
threshold = 0.3

[policies.kids.categories.violence]
action = "block"

[[policies.kids.criteria]]
name = "projects"
words = ["Project Heron"]

[[policies.kids.criteria]]
name = "doses"
action = "block"

[policies.small-kids]
extends = "kids"
routes = ["/v1/completions"]

tools = ["search"]

[policies.tried]
shadow = true
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], PolicySet]:
    def loaded(text: str) -> PolicySet:
        file = tmp_path / "policy.toml"
        file.write_text(text)
        return load_policies(file)

    return loaded


@pytest.fixture
def policies(load: Callable[[str], PolicySet]) -> PolicySet:
    return load(FILE)


def test_a_policy_has_what_it_extends_and_its_own_over_that(policies: PolicySet) -> None:
    kids, small = policies.named["kids"], policies.named["small-kids"]
    assert kids.refusal == "Ask a grown-up."
    assert kids.rules["hate"] == Rule(0.3, Action.REVISE)
    assert kids.rules["violence"] == Rule(0.9, Action.BLOCK)
    assert kids.rules["doses"] == Rule(0.3, Action.BLOCK)
    assert [one.name for one in kids.criteria] == ["projects", "doses"]
    assert policies.default.rules["hate"] == Rule(0.6, Action.REVISE)
    assert (small.rules, small.refusal) == (kids.rules, kids.refusal)
    assert (small.tools, kids.tools) == (("search",), None)
    assert [one.name for one in policies.criteria] == ["doses", "projects"]
    assert len({policy.hash for policy in policies}) == 4


def test_tools_are_inherited_and_a_stricter_policy_allows_no_more(
    load: Callable[[str], PolicySet],
) -> None:
    policies = load(
        'tools = ["a", "b"]\n[policies.less]\ntools = ["a"]\n[policies.same]\n'
        '[policies.more]\ntools = ["a", "c"]\n'
    )
    less, same, more = policies.named.values()
    assert (policies.default.tools, less.tools, same.tools) == (("a", "b"), ("a",), ("a", "b"))
    assert less.is_as_strict_as(policies.default)
    assert same.is_as_strict_as(policies.default)
    assert not more.is_as_strict_as(policies.default)
    assert not load_policy().is_as_strict_as(policies.default)
    assert policies.default.is_as_strict_as(load_policy())


def test_a_file_without_policies_has_the_default_alone() -> None:
    assert list(load_policies()) == [load_policy()]


@pytest.mark.parametrize(
    ("key", "model", "route", "name"),
    [
        (None, "smollm2", "/v1/chat/completions", "default"),
        (None, "tutor", "/v1/chat/completions", "kids"),
        (None, "tutor", "/v1/completions", "kids"),
        (None, None, "/v1/completions", "small-kids"),
        (None, ["tutor"], "/v1/chat/completions", "default"),
        ("tried", "tutor", "/v1/completions", "tried"),
        ("default", "tutor", "/v1/completions", "default"),
    ],
)
def test_the_key_counts_before_the_model_and_the_route(
    policies: PolicySet, key: str | None, model: object, route: str, name: str
) -> None:
    assert policies.choose(key=key, model=model, route=route).name == name


def test_a_caller_can_only_choose_a_stricter_policy(policies: PolicySet) -> None:
    def choose(name: str, key: str | None = None) -> str:
        chosen = policies.choose(key=key, model="smollm2", route="/v1/responses", requested=name)
        return chosen.name

    assert choose("kids") == "kids"
    assert choose("default") == "default"
    assert choose("kids", key="tried") == "kids"
    for name, key in (("tried", None), ("default", "kids")):
        with pytest.raises(PolicyRefused, match="is not as strict as"):
            choose(name, key)
    with pytest.raises(PolicyRefused, match="no policy 'x'; use one of default, kids, small-kids"):
        choose("x")


def test_a_key_whose_policy_is_gone_gets_no_other(policies: PolicySet) -> None:
    with pytest.raises(PolicyUnknown, match="the policy 'gone', which the policy file does not"):
        policies.choose(key="gone", model="tutor", route="/v1/completions")


def test_a_policy_in_shadow_withholds_nothing(policies: PolicySet) -> None:
    harmful = verdict(hate=0.9)
    assert policies.default.decide(harmful).action is Action.REVISE
    shadowed = policies.named["tried"].decide(harmful)
    assert (shadowed.action, shadowed.categories) == (Action.PASS, ("hate",))
    assert shadowed.reason.endswith("revise. The policy is in shadow: pass.")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('extends = "kids"', 'extends = "gone"', r"policies.small-kids.extends: 'gone' is none of"),
        ("[policies.tried]", "[policies.default]", "policies.default: 'default' is no name"),
        ('["/v1/completions"]', "[]", r"policies.small-kids.routes: \[\] is not a list of texts"),
        ('routes = ["/v1', 'models = ["tutor"]\n#', "'tutor' has the policy 'kids' already"),
        ("shadow = true", "shadow = 1", "policies.tried.shadow: 1 is neither true nor false"),
        ("threshold = 0.3", "threshold = 3", r"line 21: policies.kids.default.threshold: 3 is not"),
        ('"Project Heron"', "3", r"line 28: policies.kids.criteria\[0\].words: 3 is not a text"),
        ("shadow = true", "shade = true", "policies.tried.shade: unknown; remove it or use"),
    ],
)
def test_a_wrong_policy_is_told_by_its_line(
    load: Callable[[str], PolicySet], right: str, wrong: str, message: str
) -> None:
    with pytest.raises(PolicyInvalid, match=message):
        load(FILE.replace(right, wrong, 1))
