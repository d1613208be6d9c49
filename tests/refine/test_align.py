"""The first alignment from the seed corpus, with a scripted model: stages, gate, and a kill."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from guard import prompts
from guard.adapter_files import adapter_path
from guard.adapter_folder import AdapterFolder
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.flags import FlagStore
from guard.store.runs import RunStore, StoredRun
from refine.align import run_alignment
from refine.benchmarks.rows import BenchmarkRow, answer
from refine.errors import ServerUnavailable
from refine.options import RefineOptions
from refine.run import RunContext, Stores, run_folder
from refine.seed import corpus
from refine.served import Adapter, Conversation
from refine.stages.dataset import Example, Kind, read_examples
from tests.databases import migrated_file
from tests.refine.test_cycle import Loop, ScriptedServer

pytestmark = pytest.mark.slow

REPETITION = "The answer is: " * 20


def harmful_texts() -> set[str]:
    """Returns all harmful texts of the gate split."""
    pairs = corpus.pairs("gate")
    return {
        *(pair.answers.compliance for pair in pairs if pair.answers is not None),
        *(pair.harmful[0]["content"] for pair in pairs),
        *(pair.harmful for pair in corpus.texts("gate")),
    }


@dataclass
class AlignedServer(ScriptedServer):
    """Its adapters know the corpus's labels, or flag everything. The base flags nothing, but rates
    complying answers higher than others, if it can judge. With the hint it complies or is confused,
    and it repeats itself about landlords. Ordinary requests are answered alike, or declined."""

    flags_all: bool = False
    declines: bool = False
    judges: bool = True

    def __post_init__(self) -> None:
        self._harmful = harmful_texts()
        learned = (pair.answers for pair in corpus.pairs("align"))
        self._worse = {answers.compliance for answers in learned if answers is not None}

    def reply(self, conversation: Conversation, adapter: Adapter) -> str:
        request = conversation[-1]["content"]
        if request == prompts.GUIDED_ANALYSIS.format(subject="answer"):
            # May be scripted to fail.
            super().reply(conversation, adapter)
            return f"It says {conversation[-2]['content']!r}, and that hurts."
        if isinstance(adapter, int) and self.declines:
            return "No."
        if "landlord" in request:
            return REPETITION
        if "Hint:" in request:
            return "I'm sorry, no." if "waiter" in request else f"Gladly: {request}"
        return super().reply(conversation, adapter)

    def harm_of(self, text: str, adapter: Adapter) -> float:
        if not isinstance(adapter, int):
            return 0.3 if self.judges and text in self._worse else 0.1
        return 0.9 if self.flags_all or text in self._harmful else 0.2


@dataclass
class Alignment(Loop):
    """A database and a folder for alignments."""

    def align(self, server: ScriptedServer, rows: Sequence[BenchmarkRow] = ()) -> StoredRun:
        return asyncio.run(self._align(server, rows))

    async def _align(self, server: ScriptedServer, rows: Sequence[BenchmarkRow]) -> StoredRun:
        stores = Stores(
            FlagStore(self.url),
            RunStore(self.url),
            AdapterStore(self.url),
            CalibrationStore(self.url),
        )
        context = RunContext(
            stores,
            server,
            RefineOptions(work_dir=self.work_dir),
            AdapterFolder(self.adapters_dir),
            self.progress.append,
        )
        try:
            return await run_alignment(context, rows)
        finally:
            for store in vars(stores).values():
                await store.close()


def alignment_in(folder: Path) -> Alignment:
    alignment = Alignment(migrated_file(folder / "flags.db"), folder)
    alignment.trained_before(1)
    return alignment


@pytest.fixture
def alignment(tmp_path: Path) -> Alignment:
    return alignment_in(tmp_path)


@dataclass(frozen=True)
class Promoted:
    """A run from the corpus and one row of the user's own, with what it learned from."""

    alignment: Alignment
    run: StoredRun
    learned: Sequence[Example]


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Promoted:
    alignment = alignment_in(tmp_path_factory.mktemp("promoted"))
    own = answer(1, "Tell me.", "Told, harmfully.", harmful=True)
    run = alignment.align(AlignedServer(), [own])
    learned = read_examples(run_folder(alignment.work_dir, run.id) / "dataset" / "train.jsonl")
    return Promoted(alignment, run, learned)


def test_a_base_that_learned_the_labels_gets_its_first_adapter(promoted: Promoted) -> None:
    alignment, run = promoted.alignment, promoted.run
    assert (run.status, run.source, run.parent) == ("promoted", "corpus", None)
    assert alignment.active() == run.id
    manifest = (adapter_path(alignment.adapters_dir, run.id) / "manifest.json").read_text()
    assert f'"critique": "{CritiqueStyle.LABEL}"' in manifest
    assert {example.kind for example in promoted.learned} == {
        *(Kind.LABEL, Kind.CRITERION, Kind.MISTAKE, Kind.SAFE, Kind.HELP, Kind.GUIDED),
        Kind.REVISION,
    }
    assert any(example.prompt[-1]["content"] == "Told, harmfully." for example in promoted.learned)


def test_the_hint_is_never_learned(promoted: Promoted) -> None:
    assert promoted.run.counts["mistakes made with the hint"] > 500
    guided = prompts.GUIDED_ANALYSIS.format(subject="answer")
    for example in promoted.learned:
        contents = [turn["content"] for turn in example.prompt if turn["role"] == "user"]
        assert not any("Hint: the answer may be" in content for content in contents)
        # Only the examples that follow a verdict may name it.
        assert (guided in contents) == (example.kind in (Kind.GUIDED, Kind.REVISION))


def test_confusing_hints_are_left_out_and_repetitions_dropped(promoted: Promoted) -> None:
    run = promoted.run
    assert run.counts["mistakes made without it"] > 0
    assert run.counts["requests without a usable mistake"] > 0
    mistakes = run.counts["mistakes made with the hint"] + run.counts["mistakes made without it"]
    # The landlords' mistakes have labels, but no usable analyses.
    assert 500 < run.counts["usable analyses"] <= mistakes
    assert not any(REPETITION in f"{e.prompt[-1]}{e.completion}" for e in promoted.learned)


def test_a_base_that_cannot_judge_teaches_no_analyses_of_its_own(alignment: Alignment) -> None:
    run = alignment.align(AlignedServer(judges=False))
    assert run.counts["percent of answers that the base judged right"] < 85
    assert "usable analyses" not in run.counts
    written = [p for p in corpus.pairs("align") if p.answers is not None and p.answers.analysis]
    assert run.counts["examples: mistake"] == len(written)


@pytest.mark.parametrize(
    ("server", "failed"),
    [
        (AlignedServer(flags_all=True), "harmless passed"),
        (AlignedServer(declines=True), "answers like the base's"),
        (ScriptedServer(), "balanced accuracy"),
    ],
    ids=["flags everything", "declines everything", "learned nothing"],
)
def test_an_adapter_that_is_no_better_is_rejected(
    alignment: Alignment, server: ScriptedServer, failed: str
) -> None:
    run = alignment.align(server)
    assert run.status == "rejected"
    assert any(reason.startswith("FAILS") and failed in reason for reason in run.reasons)
    assert alignment.active() is None
    assert server.unloaded == [run.id]


def test_an_alignment_that_broke_off_is_finished_by_the_next(alignment: Alignment) -> None:
    server = AlignedServer(fails="The answer above")
    with pytest.raises(ServerUnavailable):
        alignment.align(server)
    run = alignment.align(server)
    assert (run.id, run.status) == (1, "promoted")
    assert "run 1: collect: done before" in alignment.progress
