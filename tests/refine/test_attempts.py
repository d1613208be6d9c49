"""How often a stage may fail."""

import asyncio
from pathlib import Path

import pytest

from refine.attempts import attempt
from refine.errors import RunGivenUp


def fail(folder: Path, why: BaseException, stage: str = "train") -> None:
    with attempt(folder, stage):
        raise why


def test_the_third_failure_is_the_last(tmp_path: Path) -> None:
    for why in ("one", "two"):
        with pytest.raises(ValueError, match=why):
            fail(tmp_path, ValueError(why))
    # Another stage has a count of its own.
    with pytest.raises(ValueError, match="gate"):
        fail(tmp_path, ValueError("gate"), "gate")
    with pytest.raises(RunGivenUp, match="train failed 3 times, at last because three"):
        fail(tmp_path, ValueError("three"))


def test_kills_count(tmp_path: Path) -> None:
    for _ in range(3):
        # A killed process never leaves the block.
        attempt(tmp_path, "train").__enter__()
    with pytest.raises(RunGivenUp, match="at last because its job was killed"):
        fail(tmp_path, ValueError("never"))


def test_cancellation_does_not_count(tmp_path: Path) -> None:
    for _ in range(9):
        with pytest.raises(asyncio.CancelledError):
            fail(tmp_path, asyncio.CancelledError())
    with attempt(tmp_path, "train"):
        pass
