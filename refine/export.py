"""A trained adapter and the data it was trained on as Hugging Face's repositories: files under the
names that its libraries load, and a card. Owns the cards and the copies. Uploads nothing and knows
no database.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.adapter_config import CONFIG, WEIGHTS
from guard.adapter_files import MANIFEST, check_sealed
from guard.prompts import CritiqueStyle
from guard.store.adapters import StoredAdapter
from guard.store.runs import Lineage, StoredRun
from refine.errors import RefineError
from refine.evaluation.figures import side_by_side
from refine.stages.dataset import EXAMPLES, Kind, read_examples

CARD = "README.md"
_DATA = "data/train.jsonl"
_KINDS = {
    Kind.MISTAKE: "a harmful answer, and the critique that finds it",
    Kind.SAFE: "a request, and an answer that does no harm",
    Kind.SAFE_CRITIQUE: "a harmless answer to a harmful request, and its critique",
    Kind.FINE_CRITIQUE: "an answer that a reviewer found harmless, and its critique",
    Kind.HELP: "an ordinary request, and the base model's answer",
    Kind.HELP_CRITIQUE: "an ordinary answer, and its critique",
    Kind.LABEL: "an answer, and the verdict without words",
    Kind.GUIDED: "a harmful answer, and the analysis after being told the verdict",
    Kind.REVISION: "a harmful answer and its analysis, and the answer written again",
}


def export_adapter(
    source: Path,
    target: Path,
    *,
    adapter: StoredAdapter,
    run: StoredRun | None,
    lineage: Lineage,
    license: str | None,
) -> None:
    """Writes PEFT's files of a sealed adapter and a model card into a new folder.

    run: which made it. license: of the adapter, as Hugging Face names it. Raises AdapterRefused
    when the files are not those registered, RefineError when the folder is there already.
    """
    check_sealed(source, version=adapter.version, sha256=adapter.sha256)
    _make(target)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, target / name)
    config = json.loads((source / CONFIG).read_text("utf-8"))
    manifest = json.loads((source / MANIFEST).read_text("utf-8"))
    card = _adapter_card(adapter, run, lineage, config, manifest, license)
    (target / CARD).write_text(card, "utf-8")


def export_dataset(source: Path, target: Path, *, run: StoredRun, license: str | None) -> None:
    """Writes a run's training examples as JSON lines and a dataset card into a new folder.

    source: the run's dataset folder. Raises RefineError when the examples are missing or not those
    that the run trained on, or the folder is there already.
    """
    examples = source / EXAMPLES
    if run.dataset_sha256 is None or not examples.is_file():
        raise RefineError(
            f"run {run.id} has no training data in {source}; export it on the machine that ran it, "
            "with the same SETBACK_REFINE_WORK_DIR"
        )
    if hashlib.sha256(examples.read_bytes()).hexdigest() != run.dataset_sha256:
        raise RefineError(f"{examples} is not what run {run.id} trained on; it was changed")
    _make(target)
    (target / _DATA).parent.mkdir()
    shutil.copyfile(examples, target / _DATA)
    kinds = Counter(example.kind for example in read_examples(examples))
    (target / CARD).write_text(_dataset_card(run, kinds, license), "utf-8")


def _make(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefineError(f"{target} is not empty; name a new folder")
    target.mkdir(parents=True, exist_ok=True)


def _adapter_card(
    adapter: StoredAdapter,
    run: StoredRun | None,
    lineage: Lineage,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    license: str | None,
) -> str:
    from huggingface_hub import ModelCardData

    base = str(config.get("base_model_name_or_path") or manifest["model"])
    fields = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        license=license,
        tags=["lora", "self-critique", "guardrail", "mistake-analysis"],
    )
    style = CritiqueStyle(manifest.get("critique", CritiqueStyle.YES_NO))
    parts = [
        f"# Adapter {adapter.version} of {base}",
        "A LoRA adapter that answers and criticises its own answers, trained by Setback on the "
        "model's own mistakes.",
        "## Use",
        f"```python\n{_LOADING.format(base=base)}\n```",
        "With vLLM: `--enable-lora --lora-modules guard=FOLDER "
        f"--max-lora-rank {manifest['rank']}`. Its critique is asked in the style "
        f"`{style.value}`; Setback asks it so.",
        "## Training",
        _fields(
            {
                "base revision": adapter.model_revision,
                "trained from": f"adapter {adapter.parent}" if adapter.parent else "the base model",
                "flags learned from, with all adapters before it": len(lineage.flags),
                "rank": manifest["rank"],
                **({"seed": run.seed, "training data": run.dataset_sha256} if run else {}),
            }
        ),
        *(("## Figures", _figures(run)) if run and run.measures else ()),
        "## Limits",
        "The figures are of the gate's sets, with 95% intervals, and of no other use. A guard of "
        "this kind misses harm and flags harmless answers; do not rely on it alone.",
    ]
    return f"---\n{fields.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


_LOADING = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "FOLDER")"""


def _dataset_card(run: StoredRun, kinds: Mapping[Kind, int], license: str | None) -> str:
    from huggingface_hub import DatasetCardData

    fields = DatasetCardData(
        license=license,
        task_categories=["text-generation"],
        tags=["mistake-analysis", "self-critique", "safety"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": _DATA}]}],
    )
    rows = ((kind, count, _KINDS[kind]) for kind, count in sorted(kinds.items()))
    parts = [
        f"# Training data of adapter {run.id}",
        f"What run {run.id} of Setback's refine loop trained {run.model} on (revision "
        f"{run.model_revision}). **It holds harmful requests and answers**, and what users wrote, "
        "as it was stored; look through it before you share it.",
        "Each line has `kind`, `prompt` (messages with `role` and `content`), `completion`, which "
        "alone is trained on, `flag_id` (null for what comes from no flag), `after_mark` and "
        "`reminded`.",
        _table(("kind", "lines", "what it trains"), rows),
        f"SHA-256 of `{_DATA}`: `{run.dataset_sha256}`.",
    ]
    return f"---\n{fields.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _figures(run: StoredRun) -> str:
    figures = side_by_side(run.measures)
    roles = list(dict.fromkeys(role for by_role in figures.values() for role in by_role))
    rows = ((name, *(shares.get(role, "") for role in roles)) for name, shares in figures.items())
    return _table(("figure", *roles), rows)


def _fields(fields: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in fields.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
