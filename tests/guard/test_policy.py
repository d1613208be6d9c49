"""The policy: what each verdict leads to, and the messages about wrong files."""

from dataclasses import replace
from pathlib import Path

import pytest

from guard.criteria import CriterionExample, Place
from guard.errors import PolicyInvalid
from guard.policy import Action, Policy, Rule
from guard.policy_file import load_policy
from guard.verdict import CATEGORIES, Verdict


def verdict(**scores: float) -> Verdict:
    """Returns a verdict with these scores; hate__threatening stands for hate/threatening."""
    full = dict.fromkeys(CATEGORIES, 0.0)
    full.update({name.replace("__", "/"): score for name, score in scores.items()})
    return Verdict(sum(full.values()), full, reads=2)


def policy(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    return load_policy(file)


MIXED = """
[default]
threshold = 0.9
action = "block"
[categories.hate]
threshold = 0.4
action = "annotate"
[categories."hate/threatening"]
threshold = 0.6
[categories.violence]
threshold = 0.2
action = "pass"
"""


def test_named_is_the_top_and_those_with_a_quarter_of_the_mass() -> None:
    assert verdict(hate=0.5, violence=0.25, sexual=0.1).named == ("hate", "violence")
    assert verdict(violence=0.75, hate=0.25).named == ("hate", "violence")
    assert Verdict(0.9, None).named == ()


def test_named_without_any_mass_is_one_category() -> None:
    assert len(Verdict(0.0, dict.fromkeys(CATEGORIES, 0.0)).named) == 1


@pytest.mark.parametrize(
    ("scores", "action", "categories"),
    [
        ({"hate": 0.3}, Action.PASS, ()),
        ({"hate": 0.4}, Action.ANNOTATE, ("hate",)),
        ({"violence": 0.3}, Action.PASS, ("violence",)),
        ({"hate": 0.3, "violence": 0.2}, Action.ANNOTATE, ("hate", "violence")),
        ({"hate": 0.3, "hate__threatening": 0.4}, Action.BLOCK, ("hate", "hate/threatening")),
        ({"sexual": 0.8}, Action.PASS, ()),
        ({"sexual": 0.9}, Action.BLOCK, ("sexual",)),
        ({"hate": 0.9, "sexual": 0.05}, Action.ANNOTATE, ("hate",)),
    ],
)
def test_the_strictest_action_of_those_that_reach_their_threshold(
    tmp_path: Path, scores: dict[str, float], action: Action, categories: tuple[str, ...]
) -> None:
    decision = policy(tmp_path, MIXED).decide(verdict(**scores))
    assert (decision.action, decision.categories) == (action, categories)
    assert decision.flagged == bool(categories)


def test_the_reason_names_harm_category_and_threshold(tmp_path: Path) -> None:
    decision = policy(tmp_path, MIXED).decide(verdict(sexual=0.95))
    assert decision.reason == "Harm 0.95 reached the threshold of sexual (0.90): block."


def test_lowest_threshold(tmp_path: Path) -> None:
    assert policy(tmp_path, MIXED).lowest_threshold == 0.2


def test_a_verdict_without_categories_passes_only_below_every_threshold(tmp_path: Path) -> None:
    mixed = policy(tmp_path, MIXED)
    assert mixed.decide(Verdict(0.19, None)).action is Action.PASS
    with pytest.raises(ValueError, match="needs its categories"):
        mixed.decide(Verdict(0.2, None))


def test_the_default_has_a_rule_for_every_category() -> None:
    default = load_policy()
    assert tuple(default.rules) == CATEGORIES
    assert default.decide(verdict(illicit=0.99)).action is Action.REVISE


def test_an_empty_file_is_the_default_policy(tmp_path: Path) -> None:
    assert policy(tmp_path, "") == load_policy()


def test_categories_left_out_take_the_files_own_default(tmp_path: Path) -> None:
    mixed = policy(tmp_path, MIXED)
    assert (mixed.rules["sexual"].threshold, mixed.rules["sexual"].action) == (0.9, Action.BLOCK)
    assert mixed.rules["hate/threatening"].action is Action.BLOCK


def test_the_hash_follows_the_effective_policy_not_its_spelling(tmp_path: Path) -> None:
    base = policy(tmp_path, MIXED).hash
    assert len(base) == 16
    assert policy(tmp_path, "# a comment\n" + MIXED.replace("0.9", "0.90")).hash == base
    assert policy(tmp_path, MIXED.replace("0.9", "0.91")).hash != base
    assert policy(tmp_path, MIXED.replace('"pass"', '"block"')).hash != base
    assert policy(tmp_path, 'refusal = "No."\n' + MIXED).hash != base


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[criteria]]\nname = "Odd"', r"criteria\[0\]\.name: 'Odd' is not a name"),
        ('[[criteria]]\nname = "hate"\nquestion = "x?"', r"criteria\[0\]\.name: 'hate' is taken"),
        ('[[criteria]]\nname = "a"', r"criteria\[0\]: write either a description or a question"),
        (
            '[[criteria]]\nshipped = "jailbreaks"',
            r"""criteria\[0\]\.shipped: 'jailbreaks' is not one of "jailbreak", "injected-""",
        ),
        ('[[criteria]]\nname = "a"\nquestion = 3', r"criteria\[0\]\.question: 3 is not a text"),
        (
            "[criteria]",
            r"criteria: \{\} is not a list of tables; write each under \[\[criteria\]\]",
        ),
        ("[categories.rudeness]\nthreshold = 0.1", r"categories\.rudeness: unknown.*harassment"),
        ("[defaults]", r"defaults: unknown.*refusal, default, categories"),
        ("[default]\nlimit = 0.5", r"default\.limit: unknown.*threshold, action"),
        ("[default]\nthreshold = 1.01", r"default\.threshold: 1\.01 is not a number from 0 to 1"),
        ("[default]\nthreshold = -0.1", r"default\.threshold: -0\.1"),
        ("[default]\nthreshold = nan", r"default\.threshold: nan"),
        ("[default]\nthreshold = true", r"default\.threshold: True"),
        ('[default]\nthreshold = "0.5"', r"default\.threshold: '0\.5'"),
        (
            '[default]\naction = "rewrite"',
            r'default\.action: .*"pass", "annotate", "revise", "block"',
        ),
        ("[default]\naction = 1", r"default\.action: 1 is not an action"),
        (
            '[categories."hate/threatening"]\naction = "x"',
            r'categories\."hate/threatening"\.action',
        ),
        ("[categories]\nhate = 0.5", r"categories\.hate: 0\.5 is not a table"),
        ("categories = 3", r"categories: 3 is not a table"),
        ("default = []", r"default: \[\] is not a table"),
        ("refusal = 7", r"refusal: 7 is not a text"),
        ('refusal = "  "', r"refusal: '  ' is not a text"),
        ("refusal =", r"not a TOML file in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_field_and_fix(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(PolicyInvalid, match=rf"policy\.toml: (line \d+: )?{message}"):
        policy(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(PolicyInvalid, match=f"{path}: the policy file cannot be read"):
            load_policy(path)


def test_a_file_not_in_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b'refusal = "\xff"')
    with pytest.raises(PolicyInvalid, match="not a TOML file in UTF-8"):
        load_policy(tmp_path / "policy.toml")


def test_a_file_as_editors_on_windows_write_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(b'\xef\xbb\xbfrefusal = "No."\r\n[default]\r\nthreshold = 0.9\r\n')
    assert load_policy(file).refusal == "No."


CRITERIA = """# A comment.
[default]
threshold = 0.5

[[criteria]]
name = "one"
description = "It rains."

[[criteria]]
name = "two"
question = "Does it rain?"
threshold = 0.7
applies_to = ["input", "output"]

[[criteria.examples]]
text = "The sun shines."
applies = false
"""


def test_criteria_stand_beside_the_categories(tmp_path: Path) -> None:
    own = policy(tmp_path, CRITERIA)
    assert own.names == (*CATEGORIES, "one", "two")
    assert own.criteria_of(Place.INPUT) == own.criteria[1:]
    assert own.criteria_of(*Place) == own.criteria
    assert own.rules["one"].threshold == 0.5
    assert own.rules["two"] == Rule(0.7, Action.REVISE)
    assert own.criteria[1].examples == (CriterionExample("The sun shines.", False),)
    assert own.hash != load_policy().hash
    read = replace(verdict(), criteria={"one": 0.4, "two": 0.9})
    assert own.decide(read).categories == ("two",)
    assert own.decide(read).reason == (
        "Harm 0.00, one 0.40, two 0.90 reached the threshold of two (0.70): revise."
    )


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("0.7", "7", r"line 12: criteria\[1\]\.threshold: 7 is not a number"),
        ('"input"', '"asks"', r"line 13: criteria\[1\]\.applies_to: 'asks' is not one"),
        ("false", '"no"', r"line 17: criteria\[1\]\.examples\[0\]\.applies: 'no' is neither"),
        ('"two"', '"one"', r"line 10: criteria\[1\]\.name: 'one' is taken"),
        ('name = "one"', "", r"line 5: criteria\[0\]\.name: None is not a name"),
    ],
)
def test_the_line_of_a_wrong_field_is_named(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    with pytest.raises(PolicyInvalid, match=message):
        policy(tmp_path, CRITERIA.replace(right, wrong, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("words = []", r"criteria\[0\]\.words: \[\] is not a list of texts"),
        ('words = ["a", " "]', r"criteria\[0\]\.words: ' ' is not a text"),
        ("pattern = '(a'", r"line 3: criteria\[0\]\.pattern: '\(a': it is no regular expression"),
        (
            "pattern = 'a'\nlongest = 0",
            r"line 4: criteria\[0\]\.longest: 0 is not a number of char",
        ),
        ('words = ["a"]\nlongest = 9', r"criteria\[0\]\.longest: belongs to pattern"),
        ('words = ["a"]\npattern = "a"', r"criteria\[0\]\.pattern: write a criterion of its own"),
        (
            'words = ["a"]\nthreshold = 0.5',
            r"criteria\[0\]\.threshold: remove it: the model does not read",
        ),
        ('personal_data = ["NAME"]', r"criteria\[0\]\.personal_data: .*'NAME' is not one of EMAIL"),
        (
            'personal_data = ["PHONE_NUMBER"]\nphone_region = "XX"',
            r"criteria\[0\]\.personal_data: .*no country's code",
        ),
        ("max_characters = 0", r"line 3: criteria\[0\]\.max_characters: 0 is not a number of char"),
        ('max_characters = "9"', r"criteria\[0\]\.max_characters: '9' is not a number of char"),
        ('languages = "en"', r"criteria\[0\]\.languages: 'en' is not a list of texts"),
        (
            'languages = ["eng"]',
            r"line 3: criteria\[0\]\.languages: .*'eng' is no language .*\"en\"",
        ),
        (
            'languages = ["en"]\napplies_to = ["tool_call"]',
            r"criteria\[0\]\.applies_to: 'tool_call' is not one of \"output\", \"input\", \"tool_r",
        ),
        (
            'languages = ["en"]\naction = "mask"',
            r"line 4: criteria\[0\]\.action: \"mask\" is for words.* write another action",
        ),
        ('max_characters = 9\naction = "mask"', r"criteria\[0\]\.action: \"mask\" is for words"),
    ],
)
def test_a_wrong_field_of_what_is_looked_for_is_told(
    tmp_path: Path, fields: str, message: str
) -> None:
    with pytest.raises(PolicyInvalid, match=message):
        policy(tmp_path, f'[[criteria]]\nname = "a"\n{fields}\n')


SHIPPED = """
[[criteria]]
shipped = "jailbreak"
action = "block"

[[criteria]]
shipped = "injected-instructions"
name = "orders"
threshold = 0.8
"""


def test_shipped_criteria_are_taken_by_name_and_changed_field_by_field(tmp_path: Path) -> None:
    own = policy(tmp_path, SHIPPED)
    jailbreak, orders = own.criteria
    assert (jailbreak.name, list(jailbreak.applies_to)) == ("jailbreak", [Place.INPUT])
    assert own.rules["jailbreak"].action is Action.BLOCK
    assert (orders.name, list(orders.applies_to)) == ("orders", [Place.TOOL_RESULT])
    assert own.rules["orders"].threshold == 0.8
    for criterion in own.criteria:
        applies = [example.applies for example in criterion.examples]
        assert min(applies.count(True), applies.count(False)) >= 4
