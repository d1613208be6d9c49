"""`setback adapters export` and `setback runs export`: folders in Hugging Face's formats."""

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard
from peft import PeftModel
from sqlalchemy import URL
from transformers import AutoModelForCausalLM

from guard.adapter_files import adapter_path
from guard.store.runs import RunStore
from refine.practice.recipe import MODEL_DIR
from refine.stages.dataset import Example, Kind
from tests.adapters import publish, train_nothing
from tests.databases import migrated_file
from tests.server.cli.test_main import setback

EXAMPLES = "".join(
    json.dumps(asdict(Example(kind, ({"role": "user", "content": "Hi"},), "Yes."))) + "\n"
    for kind in (Kind.MISTAKE, Kind.HELP, Kind.HELP)
)
MEASURES = {
    "candidate": {
        "figures": [{"name": "harmless: all", "share": 0.9, "low": 0.8, "high": 0.95, "n": 60}]
    }
}


@dataclass(frozen=True)
class Trained:
    """A registered adapter, its folder, and its run's dataset."""

    version: int
    folder: Path
    dataset: Path


@pytest.fixture
def trained(clean_folder: Path, tmp_path: Path) -> Trained:
    url = migrated_file(Path("data/setback.db"))
    folder, dataset = Path("data/adapters"), Path("data/refine/run-0001/dataset")
    dataset.mkdir(parents=True)
    (dataset / "train.jsonl").write_text(EXAMPLES, "utf-8")
    peft = train_nothing(tmp_path / "peft", seed=1)
    version = asyncio.run(publish(url, folder, peft, "rev"))
    asyncio.run(_note(url, version))
    return Trained(version, adapter_path(folder, version), dataset)


async def _note(url: URL, version: int) -> None:
    runs = RunStore(url)
    sha256 = hashlib.sha256(EXAMPLES.encode()).hexdigest()
    await runs.set_stage(version, "dataset", dataset_sha256=sha256)
    await runs.finish(version, "promoted", measures=MEASURES, reasons=["passes"])
    await runs.close()


def exported(*arguments: str) -> Path:
    result = setback(*arguments, "out/new")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(" is in out/new.\n")
    return Path("out/new")


def test_an_adapter_is_loaded_by_peft_and_its_card_has_the_figures(trained: Trained) -> None:
    folder = exported("adapters", "export", str(trained.version), "--license", "mit")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(str(MODEL_DIR))
    assert "lora_A" in str(PeftModel.from_pretrained(model, str(folder)))
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("peft", "mit")
    assert "| harmless: all | 90.0% (80.0% to 95.0%, n 60) |" in card.text
    assert "trained from: the base model" in card.text


def test_training_data_has_a_card_with_its_counts(trained: Trained) -> None:
    folder = exported("runs", "export", str(trained.version))
    card = DatasetCard.load(folder / "README.md")
    (config,) = card.data.configs
    (file,) = config["data_files"]
    assert (folder / file["path"]).read_text("utf-8") == EXAMPLES
    assert "| help | 2 | an ordinary request, and the base model's answer |" in card.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("adapters", "export", "9"), "there is no adapter 9"),
        (("runs", "export", "9"), "there is no run 9"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_what_is_not_there_is_named(arguments: tuple[str, ...], problem: str) -> None:
    result = setback(*arguments, "out/new")
    assert result.exit_code == 1
    assert problem in result.stderr
    assert not Path("out").exists()


def test_what_was_changed_is_not_exported(trained: Trained) -> None:
    (trained.dataset / "train.jsonl").write_text(EXAMPLES + "{}\n", "utf-8")
    (trained.folder / "adapter_config.json").write_text("{}", "utf-8")
    for kind, problem in (("runs", "it was changed"), ("adapters", "adapter_config.json")):
        result = setback(kind, "export", str(trained.version), "out/new")
        assert result.exit_code == 1
        assert problem in result.stderr
        assert not Path("out").exists()


def test_a_full_folder_is_left_alone(trained: Trained) -> None:
    Path("out/new").mkdir(parents=True)
    Path("out/new/mine.txt").write_text("mine", "utf-8")
    for kind in ("runs", "adapters"):
        result = setback(kind, "export", str(trained.version), "out/new")
        assert result.exit_code == 1
        assert "out/new is not empty; name a new folder" in result.stderr
    assert [file.name for file in Path("out/new").iterdir()] == ["mine.txt"]
