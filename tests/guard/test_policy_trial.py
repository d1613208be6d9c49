"""Another policy decides on stored flags again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.policy import Action
from guard.policy_file import load_policy
from guard.policy_trial import Trial, try_policy
from guard.store.flags import Flag, StoredFlag

POLICY = """
[default]
threshold = 0.8
action = "block"
[[criteria]]
name = "doses"
description = "It names a dose."
threshold = 0.6
action = "annotate"
"""


@pytest.fixture
def trial(flag: Flag, tmp_path: Path) -> Callable[..., Trial]:
    """Tries a policy on flags that differ from the usual one."""

    def tried(*changes: dict[str, Any]) -> Trial:
        file = tmp_path / "policy.toml"
        file.write_text(POLICY)
        flags = [
            StoredFlag(**vars(flag) | {"id": number, **change})
            for number, change in enumerate(changes, start=1)
        ]
        return try_policy(load_policy(file), flags)

    return tried


def test_flags_are_counted_by_what_was_done_and_would_be(trial: Callable[..., Trial]) -> None:
    done = trial(
        {"harm": 0.9, "action": Action.REVISE, "review": "confirmed"},
        {"harm": 0.7, "action": Action.REVISE, "review": "dismissed"},
        {"harm": 0.6, "action": Action.REVISE},
    )
    assert done.flags == 3
    assert set(done.changes) == {(Action.REVISE, Action.BLOCK), (Action.REVISE, Action.PASS)}
    blocked, passed = done.changes.values()
    assert (blocked.flags, blocked.confirmed, blocked.dismissed) == ([1], 1, 0)
    assert (passed.flags, passed.confirmed, passed.dismissed) == ([2, 3], 0, 1)


def test_a_criterion_that_was_read_counts_and_another_is_told(trial: Callable[..., Trial]) -> None:
    read = {"harm": 0.1, "category_scores": {"doses": 0.7}, "categories": ("doses",)}
    done = trial(read, {"harm": 0.1})
    assert set(done.changes) == {(Action.BLOCK, Action.ANNOTATE), (Action.BLOCK, Action.PASS)}
    assert done.unread == {"doses": 1}


def test_harm_without_categories_is_no_category(trial: Callable[..., Trial]) -> None:
    """An earlier policy's threshold was higher."""
    done = trial({"harm": 0.85, "category_scores": {"rivals": 0.9}, "categories": ("rivals",)})
    assert set(done.changes) == {(Action.BLOCK, Action.PASS)}


def test_what_a_policy_looks_for_is_found_in_the_answer(flag: Flag, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        '[default]\naction = "pass"\n[[criteria]]\nname = "a"\nwords = ["gnome"]\naction = "block"'
    )
    done = try_policy(load_policy(file), [StoredFlag(**vars(flag) | {"id": 1})])
    assert set(done.changes) == {(Action.BLOCK, Action.BLOCK)}
    assert not done.unread
