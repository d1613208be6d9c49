"""One cycle with a scripted server, a real database and real files. Only the training is prepared,
as if the job had been killed right after it (see test_train.py)."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from guard import prompts
from guard.adapter_files import adapter_path, manifest_sha256
from guard.adapter_folder import AdapterFolder
from guard.policy_file import parse_policies
from guard.store.adapters import AdapterStore, StoredAdapter
from guard.store.calibrations import CalibrationStore, StoredCalibration
from guard.store.flags import Flag, FlagStore
from guard.store.review import Label, ReviewStore
from guard.store.runs import RunStore, StoredRun
from refine.criteria import CriterionInForce, criteria_in_force
from refine.cycle import run_cycle
from refine.errors import DataInvalid, ServerUnavailable
from refine.evaluation.sets import Case, Labelled, Sets
from refine.evaluation.truth import EXACT, Reliability
from refine.options import RefineOptions
from refine.run import RunContext, Stores, run_folder
from refine.served import (
    GREEDY,
    Adapter,
    Conversation,
    GenerationParams,
    ServedInfo,
    answered,
)
from refine.world import EvaluationData
from tests.adapters import write_peft
from tests.databases import migrated_file
from tests.refine.scripted_model import ScriptedModel

REVISION = "rev-1"
REFUSAL = "I will not help with that."
FLAGS = 30
OVERCAUTIOUS = ("harm", "plant 1")


def turn(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def sets() -> Sets:
    """Requests that are harmful if they say so."""
    labels = [number % 2 == 0 for number in range(400)]
    return Sets(
        name="scripted",
        harmful=tuple(
            Case(turn(f"harm thing {n}"), "jailbreak" if n % 2 else "plain", "violence")
            for n in range(240)
        ),
        harmless=tuple(
            Case(turn(f"tend plant {n}"), "borderline" if n % 3 else "everyday") for n in range(600)
        ),
        pairs=tuple(
            Labelled(answered(turn("x"), f"harm {n}" if bad else f"water {n}"), bad, "pairs")
            for n, bad in enumerate(labels)
        ),
        injections=tuple(
            Labelled(answered(turn("x"), f"harm, but let it pass {n}"), True, "injections")
            for n in range(200)
        ),
    )


class WordTruth:
    """An answer is harmful if it mentions harm, a refusal if it is the refusal, and helps
    otherwise."""

    name = "words"

    async def complied(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        return ["harm" in answer for answer in answers]

    async def helped(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        return [answer != REFUSAL for answer in answers]

    async def refused(self, cases: Sequence[Case], answers: Sequence[str]) -> list[bool]:
        return [answer == REFUSAL for answer in answers]


@dataclass
class ScriptedServer(ScriptedModel):
    """A refine.served.Server. The base obeys; an adapter declines what `learned` says of a request.

    fails: a question that is answered with a failure, once.
    """

    learned: tuple[str, ...] = ("harm",)
    revision: str = REVISION
    active: int | None = None
    fails: str | None = None
    unloaded: list[int] = field(default_factory=list)

    async def info(self) -> ServedInfo:
        return ServedInfo("scripted", "base", self.revision, 1024, 32, self.active)

    async def unload(self, version: int) -> None:
        self.unloaded.append(version)

    def reply(self, conversation: Conversation, adapter: Adapter) -> str:
        request = conversation[-1]["content"]
        if self.fails is not None and self.fails in request:
            self.fails = None
            raise ServerUnavailable("scripted to fail")
        if request == prompts.REVISE:
            return REFUSAL
        if request.startswith("Ask the following"):
            return f"{request.partition(': ')[2]}, please"
        if request.startswith(("The answer above", "Is the answer above")):
            return "It is wrong."
        declines = isinstance(adapter, int) and any(word in request for word in self.learned)
        return REFUSAL if declines else f"So: {request}"

    def harm_of(self, text: str, adapter: Adapter) -> float:
        certainty = 0.99 if isinstance(adapter, int) else 0.9
        return certainty if "harm" in text else 1 - certainty


@dataclass
class Loop:
    """A database and a folder in which cycles run one after the other."""

    url: URL
    folder: Path
    progress: list[str] = field(default_factory=list)

    @property
    def adapters_dir(self) -> Path:
        return self.folder / "adapters"

    @property
    def work_dir(self) -> Path:
        return self.folder / "refine"

    def cycle(
        self,
        server: ScriptedServer,
        reliability: Reliability = EXACT,
        criteria: Sequence[CriterionInForce] = (),
        **options: Any,
    ) -> StoredRun:
        """Runs one cycle."""
        refine_options = RefineOptions(work_dir=self.work_dir, **options)
        return asyncio.run(self._cycle(server, reliability, refine_options, criteria))

    async def runs(self) -> list[StoredRun]:
        """Returns all runs."""
        store = RunStore(self.url)
        runs = await store.list(limit=1)
        await store.close()
        return runs

    async def _cycle(
        self,
        server: ScriptedServer,
        reliability: Reliability,
        options: RefineOptions,
        criteria: Sequence[CriterionInForce],
    ) -> StoredRun:
        stores = Stores(
            FlagStore(self.url),
            RunStore(self.url),
            AdapterStore(self.url),
            CalibrationStore(self.url),
        )
        evaluation_data = EvaluationData(
            lambda n, seed: [f"tend lawn {i}" for i in range(n)],
            ("{request}",),
            sets(),
            WordTruth(),
            reliability=reliability,
        )
        context = RunContext(
            stores,
            server,
            options,
            AdapterFolder(self.adapters_dir),
            self.progress.append,
            criteria,
        )
        try:
            return await run_cycle(context, evaluation_data)
        finally:
            for store in vars(stores).values():
                await store.close()

    def trained_before(self, number: int) -> None:
        """Prepares run `number` as if it had trained an adapter already."""
        trained = run_folder(self.work_dir, number) / "adapter"
        trained.mkdir(parents=True)
        write_peft(trained, value=number)
        (trained.parent / "train.json").write_text(json.dumps(str(trained)))

    def write(self, flags: Sequence[Flag]) -> None:
        async def add() -> None:
            store = FlagStore(self.url)
            for flag in flags:
                await store.add(flag)
            await store.close()

        asyncio.run(add())

    def confirm(self, first: int, last: int) -> None:
        """Has a reviewer confirm these flags."""

        async def label() -> None:
            store = ReviewStore(self.url)
            numbers = range(first, last + 1)
            await store.label(numbers, Label(review="confirmed"), "anna")
            await store.close()

        asyncio.run(label())

    def active(self) -> int | None:
        async def read() -> int | None:
            store = AdapterStore(self.url)
            version = await store.active()
            await store.close()
            return version

        return asyncio.run(read())


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    url = migrated_file(tmp_path / "flags.db")
    return Loop(url, tmp_path)


def harms(flag: Flag, begun: int = 0, n: int = FLAGS) -> list[Flag]:
    """Flags of requests that share few words."""
    return [
        replace(
            flag,
            request_id=f"r{number}",
            messages=[{"role": "user", "content": f"harm w{number} x{number * 7} y{number * 3}"}],
            answer=f"harm it with {number}",
        )
        for number in range(begun, begun + n)
    ]


def test_a_cycle_ends_with_a_better_adapter_in_force(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    run = loop.cycle(ScriptedServer(), replay=40)
    assert run.status == "promoted", run.reasons
    assert loop.active() == 1
    registered = asyncio.run(_adapter(loop.url, 1))
    assert registered.sha256 == manifest_sha256(adapter_path(loop.adapters_dir, 1))
    assert run.counts["learn"] + run.counts["held_out"] == FLAGS
    assert run.measures is not None
    assert {role: measures["adapter"] for role, measures in run.measures.items()} == {
        "active": "base",
        "candidate": "1",
    }


def test_a_candidate_is_calibrated_and_measured_on_its_scale(loop: Loop, flag: Flag) -> None:
    class Timid(ScriptedServer):
        """Its adapter separates harm from the rest, but far below 0.5."""

        async def harm(
            self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
        ) -> list[float]:
            harms = await super().harm(conversations, adapter=adapter, reminder=reminder)
            if not isinstance(adapter, int):
                return harms
            return [0.2 if harm > 0.5 else 0.02 for harm in harms]

    loop.write(harms(flag))
    loop.trained_before(1)
    run = loop.cycle(Timid(), replay=40)
    assert run.status == "promoted", run.reasons
    calibration = asyncio.run(_calibration(loop.url, 1))
    assert calibration.rows == 400
    assert calibration.scales.answers.apply(0.2) > 0.5 > calibration.scales.answers.apply(0.02)


def test_used_flags_are_not_used_again(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    loop.cycle(ScriptedServer(), replay=40)
    again = loop.cycle(ScriptedServer(active=1), replay=40)
    assert again.status == "too_few"
    assert again.reasons[0].startswith("0 flags to learn from and 20 needed")


def test_a_flag_that_the_model_cannot_be_asked_about_is_left_out_and_counted(
    loop: Loop, flag: Flag
) -> None:
    usual = harms(flag)
    long = replace(flag, messages=turn("harm " * 900), answer="harm")
    odd = replace(flag, messages=({"role": "narrator", "content": "harm"}, *turn("a harm")))
    loop.write([long, odd, *usual])
    loop.trained_before(1)
    run = loop.cycle(ScriptedServer(), replay=40)
    assert run.status == "promoted"
    left_out = [why for why in run.counts if "which the context has room for" in why]
    assert [run.counts[why] for why in left_out] == [1]
    assert run.counts["left out: refused by the chat template"] == 1


def test_a_truth_that_cannot_tell_is_refused_before_a_run_begins(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    with pytest.raises(DataInvalid, match=r"words.* 40% of the harmful .* 60% of the harmless"):
        loop.cycle(ScriptedServer(), Reliability(0.4, 0.6, 100), replay=40)
    assert asyncio.run(loop.runs()) == []


def doses(flag: Flag) -> list[Flag]:
    """Flags of a criterion alone."""
    return [
        replace(one, categories=("doses",), answer=f"take {number} pills")
        for number, one in enumerate(harms(flag, begun=300))
    ]


@dataclass
class DoseReader(ScriptedServer):
    """reads: whether its adapters still find doses."""

    reads: bool = True

    def criteria_of(self, text: str, adapter: Adapter) -> dict[str, float]:
        return {"doses": float("pills" in text and (self.reads or adapter == "base"))}


def dose_criterion() -> tuple[CriterionInForce, ...]:
    text = '[[criteria]]\nname = "doses"\ndescription = "It tells how much to take."\n'
    return criteria_in_force(parse_policies(text, "policy"), text)


@pytest.mark.parametrize("reads", [True, False])
def test_a_criterion_is_learned_from_reviewed_flags_and_must_not_be_forgotten(
    loop: Loop, flag: Flag, reads: bool
) -> None:
    loop.write(doses(flag))
    loop.confirm(1, FLAGS)
    loop.trained_before(1)
    run = loop.cycle(DoseReader(reads=reads), criteria=dose_criterion(), replay=40)
    held_out = run.counts["held_out, criteria"]
    assert (run.counts["learn"], run.counts["learn, criteria"]) == (0, FLAGS - held_out)
    lines = (run_folder(loop.work_dir, 1) / "dataset" / "train.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    labels = Counter(one["completion"] for one in examples if one["kind"] == "criterion")
    # Ordinary answers are the examples to which it does not apply.
    assert labels == {"Yes": 2 * (FLAGS - held_out), "No": 2 * (FLAGS - held_out)}
    assert run.status == ("promoted" if reads else "rejected"), run.reasons
    failed = [reason for reason in run.reasons if reason.startswith("FAILS")]
    assert failed == [] if reads else failed[0].startswith("FAILS: criterion doses: caught 0.0%")
    assert asyncio.run(_unlearned(loop.url)) == (0 if reads else FLAGS)


def test_a_criterion_without_a_reviewers_label_is_not_learned(loop: Loop, flag: Flag) -> None:
    loop.write(doses(flag))
    run = loop.cycle(DoseReader(), criteria=dose_criterion(), replay=40)
    assert run.status == "too_few"
    assert run.counts["left out: flagged for a criterion alone"] == FLAGS


def test_a_later_run_rehearses_what_an_earlier_one_taught(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    loop.cycle(ScriptedServer(), replay=40)
    loop.write(harms(flag, begun=100))
    loop.trained_before(2)
    run = loop.cycle(ScriptedServer(active=1), replay=40, rehearsal=50)
    assert run.parent == 1
    dataset = run_folder(loop.work_dir, 2) / "dataset" / "train.jsonl"
    flags = {json.loads(line)["flag_id"] for line in dataset.read_text().splitlines()}
    assert {number for number in flags if number and number <= FLAGS}
    assert {number for number in flags if number and number > FLAGS}


def test_the_bases_ordinary_answers_are_asked_for_once(loop: Loop, flag: Flag) -> None:
    first, second = ScriptedServer(), ScriptedServer(active=1)
    for number, server in enumerate((first, second)):
        loop.write(harms(flag, begun=100 * number))
        loop.trained_before(number + 1)
        loop.cycle(server, replay=40)
    ordinary = [
        {turn for adapter, turn in server.requests if adapter == "base"}
        for server in (first, second)
    ]
    assert "tend lawn 0" in ordinary[0]
    assert "tend lawn 0" not in ordinary[1]
    datasets = [run_folder(loop.work_dir, n) / "dataset" / "train.jsonl" for n in (1, 2)]
    assert all("So: tend lawn 0" in dataset.read_text() for dataset in datasets)


def test_an_adapter_that_learned_nothing_and_lost_nothing_is_promoted(
    loop: Loop, flag: Flag
) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    run = loop.cycle(ScriptedServer(learned=()), replay=40)
    assert run.status == "promoted"


def test_an_adapter_that_refuses_what_is_fine_is_rejected_and_unloaded(
    loop: Loop, flag: Flag
) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    server = ScriptedServer(learned=OVERCAUTIOUS)
    run = loop.cycle(server, replay=40)
    assert run.status == "rejected"
    assert [r.split(" ")[1] for r in run.reasons if r.startswith("FAILS")] == [
        "help:", "help:", "help:", "over-refusal",
    ]  # fmt: skip
    assert loop.active() is None
    assert server.unloaded == [1]


def test_the_flags_of_a_rejected_run_are_tried_again(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    first = loop.cycle(ScriptedServer(learned=OVERCAUTIOUS), replay=40)
    loop.trained_before(2)
    second = loop.cycle(ScriptedServer(), replay=40)
    assert (first.status, second.status) == ("rejected", "promoted")
    assert second.counts["learn"] == first.counts["learn"]


@pytest.mark.parametrize(
    ("fails", "stage"),
    [("Ask the following", "analyse"), ("tend lawn 3", "dataset"), ("harm thing 5", "gate")],
)
def test_a_run_that_broke_off_is_finished_by_the_next(
    loop: Loop, flag: Flag, fails: str, stage: str
) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    with pytest.raises(ServerUnavailable):
        loop.cycle(ScriptedServer(fails=fails), replay=40, seed=3)
    broken = asyncio.run(_newest(loop.url))
    assert (broken.status, broken.stage) == ("running", stage)
    loop.write(harms(flag, begun=100))
    server = ScriptedServer()
    run = loop.cycle(server, replay=40, seed=3)
    assert (run.id, run.status) == (1, "promoted")
    # Flags raised during this run wait for the next one.
    assert run.counts["learn"] + run.counts["held_out"] == FLAGS
    if stage == "gate":
        assert not any(turn.startswith("Ask the following") for _, turn in server.requests)


@dataclass
class CancelledServer(ScriptedServer):
    """Somebody wants run 1 to end when `cancelled_at` is asked; the answer never comes."""

    url: URL = field(kw_only=True)
    cancelled_at: str = field(kw_only=True)

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        params: GenerationParams = GREEDY,
    ) -> list[str]:
        if any(self.cancelled_at in conversation[-1]["content"] for conversation in conversations):
            runs = RunStore(self.url)
            await runs.cancel(1, by="key 1 (anna)")
            await runs.close()
            await asyncio.Event().wait()
        return await super().answers(conversations, adapter=adapter, params=params)


@pytest.mark.parametrize("cancelled_at", ["Ask the following", "harm thing 5"])
def test_a_cancelled_run_ends_and_leaves_its_flags_to_the_next(
    loop: Loop, flag: Flag, cancelled_at: str
) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    run = loop.cycle(CancelledServer(url=loop.url, cancelled_at=cancelled_at), replay=40)
    assert (run.status, run.reasons) == ("cancelled", ("cancelled by key 1 (anna)",))
    assert loop.active() is None
    loop.trained_before(2)
    again = loop.cycle(ScriptedServer(), replay=40)
    assert (again.id, again.status) == (2, "promoted")
    assert again.counts["learn"] + again.counts["held_out"] == FLAGS


def test_the_adapter_of_a_run_cancelled_at_the_gate_is_never_promoted(
    loop: Loop, flag: Flag
) -> None:
    loop.write(harms(flag))
    loop.trained_before(1)
    server = CancelledServer(url=loop.url, cancelled_at="harm thing 5")
    loop.cycle(server, replay=40)
    assert asyncio.run(_adapter(loop.url, 1)).status == "rejected"
    assert server.unloaded == [1]


def test_a_run_that_fails_three_times_at_one_stage_ends_with_its_reason(
    loop: Loop, flag: Flag
) -> None:
    class Broken(ScriptedServer):
        """Fails whenever it is asked for an analysis."""

        def reply(self, conversation: Conversation, adapter: Adapter) -> str:
            if conversation[-1]["content"].startswith("The answer above"):
                raise ServerUnavailable("it is broken")
            return super().reply(conversation, adapter)

    loop.write(harms(flag))
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            loop.cycle(Broken(), replay=40)
    run = loop.cycle(Broken(), replay=40)
    assert (run.id, run.status) == (1, "failed")
    assert run.error == "analyse failed 3 times, at last because it is broken"
    # Nothing that was flagged is lost.
    loop.trained_before(2)
    assert loop.cycle(ScriptedServer(), replay=40).status == "promoted"


def test_a_run_begun_for_another_base_is_given_up(loop: Loop, flag: Flag) -> None:
    loop.write(harms(flag))
    with pytest.raises(ServerUnavailable):
        loop.cycle(ScriptedServer(fails="Ask the following"), replay=40)
    loop.trained_before(2)
    run = loop.cycle(ScriptedServer(revision="rev-2"), replay=40)
    assert (run.id, run.status) == (2, "promoted")
    first = asyncio.run(_run(loop.url, 1))
    assert first is not None
    assert first.status == "failed"
    assert first.error is not None
    assert "another base model" in first.error


def test_a_rollback_before_the_last_stage_is_not_undone(loop: Loop, flag: Flag) -> None:
    """Killed between the activation and its record; meanwhile someone rolled back."""
    loop.write(harms(flag))
    loop.trained_before(1)
    loop.cycle(ScriptedServer(), replay=40)
    asyncio.run(_as_if_unfinished(loop.url))
    assert loop.active() is None
    assert loop.cycle(ScriptedServer(), replay=40).status == "promoted"
    assert loop.active() is None


async def _calibration(url: URL, version: int) -> StoredCalibration:
    store = CalibrationStore(url)
    calibrations = await store.in_force(REVISION)
    await store.close()
    return calibrations[version]


async def _adapter(url: URL, version: int) -> StoredAdapter:
    store = AdapterStore(url)
    adapter = await store.get(version)
    await store.close()
    assert adapter is not None
    return adapter


async def _newest(url: URL) -> StoredRun:
    store = RunStore(url)
    (run,) = await store.list(1)
    await store.close()
    return run


async def _run(url: URL, number: int) -> StoredRun | None:
    store = RunStore(url)
    run = await store.get(number)
    await store.close()
    return run


async def _as_if_unfinished(url: URL) -> None:
    runs, adapters = RunStore(url), AdapterStore(url)
    await adapters.rollback(by="somebody", reason="")
    await runs.finish(1, "running")
    await runs.close()
    await adapters.close()


async def _unlearned(url: URL) -> int:
    store = FlagStore(url)
    flags = await store.unlearned(1000)
    await store.close()
    return len(flags)
