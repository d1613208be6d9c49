"""Adapters on disk: a sealed directory passes verification, and nothing else does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.adapter_config import CONFIG, WEIGHTS
from guard.adapter_files import (
    MANIFEST,
    AdapterManifest,
    adapter_path,
    manifest_sha256,
    seal,
    verify,
)
from guard.errors import AdapterRefused
from guard.store.adapters import StoredAdapter
from tests.adapters import REVISION, write_adapter, write_peft


def check(
    folder: Path, stored: StoredAdapter, *, max_rank: int = 16, revision: str = REVISION
) -> AdapterManifest:
    return verify(
        adapter_path(folder, stored.version),
        version=stored.version,
        sha256=stored.sha256,
        model_revision=revision,
        max_rank=max_rank,
    )


def test_a_sealed_adapter_verifies_and_says_what_it_is(tmp_path: Path) -> None:
    manifest = check(tmp_path, write_adapter(tmp_path, 12, rank=8))
    assert (manifest.version, manifest.run, manifest.rank) == (12, 12, 8)
    assert (manifest.model, manifest.model_revision) == ("practice", REVISION)
    assert set(manifest.files) == {CONFIG, WEIGHTS}
    assert adapter_path(tmp_path, 12).name == "0012"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def resealed(path: Path) -> None:
    """Replaces the adapter by another one, sealed in the same way."""
    flip(path / WEIGHTS)
    seal(path, version=3, parent=None, model="practice", model_revision=REVISION)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights gone": (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "weights altered": (lambda path: flip(path / WEIGHTS), f"{WEIGHTS} was altered"),
    "config altered": (lambda path: flip(path / CONFIG), f"{CONFIG} was altered"),
    "manifest gone": (lambda path: (path / MANIFEST).unlink(), "not the one that was registered"),
    "manifest altered": (lambda path: flip(path / MANIFEST), "not the one that was registered"),
    "another adapter": (resealed, "not the one that was registered"),
    "an extra file": (lambda path: (path / "notes.txt").touch(), "notes.txt does not belong"),
    "unsafe weights": (lambda path: (path / "adapter_model.bin").touch(), "does not belong"),
    "a folder": (lambda path: (path / "sub").mkdir(), "sub is not a plain file"),
    "a link": (lambda path: (path / "x.json").symlink_to(path / CONFIG), "not a plain file"),
    "all gone": (lambda path: path.rename(path.with_name("elsewhere")), "is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_anything_but_what_was_registered_is_refused_by_name(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    stored = write_adapter(tmp_path, 3)
    damage(adapter_path(tmp_path, 3))
    with pytest.raises(AdapterRefused, match=f"Adapter 3 in .*{message}"):
        check(tmp_path, stored)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    stored = write_adapter(tmp_path, 3, revision="other")
    with pytest.raises(AdapterRefused, match="made for revision other .* at revision rev-1"):
        check(tmp_path, stored)


def test_an_adapter_of_too_large_a_rank_is_refused(tmp_path: Path) -> None:
    stored = write_adapter(tmp_path, 3, rank=32)
    with pytest.raises(AdapterRefused, match="has rank 32; the server takes up to 16"):
        check(tmp_path, stored)


def test_the_largest_rank_counts(tmp_path: Path) -> None:
    write_peft(tmp_path, rank=64)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"r": 4, "rank_pattern": {"q_proj": 64}}))
    assert seal(tmp_path, version=3, parent=None, model="m", model_revision=REVISION).rank == 64


def test_an_adapter_under_anothers_number_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, 3)
    adapter_path(tmp_path, 3).rename(adapter_path(tmp_path, 4))
    with pytest.raises(AdapterRefused, match="says that it is adapter 3"):
        verify(
            adapter_path(tmp_path, 4),
            version=4,
            sha256=manifest_sha256(adapter_path(tmp_path, 4)),
            model_revision=REVISION,
            max_rank=16,
        )


def test_only_lora_adapters_are_sealed(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="not a LoRA adapter"):
        write_adapter(tmp_path, 1, kind="IA3")


@pytest.mark.parametrize(
    "config", ["", "[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": "x"}']
)
def test_a_configuration_that_peft_did_not_write_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / CONFIG).write_text(config)
    (tmp_path / WEIGHTS).touch()
    with pytest.raises(AdapterRefused, match=CONFIG):
        seal(tmp_path, version=1, parent=None, model="m", model_revision="r")


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "train.jsonl"])
def test_a_directory_with_other_files_is_not_sealed(tmp_path: Path, name: str) -> None:
    for file in (CONFIG, WEIGHTS, name):
        (tmp_path / file).write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(AdapterRefused, match=f"holds {name}"):
        seal(tmp_path, version=1, parent=None, model="m", model_revision="r")


def test_an_adapter_without_weights_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(AdapterRefused, match=f"{WEIGHTS} is missing"):
        seal(tmp_path, version=1, parent=None, model="m", model_revision="r")
