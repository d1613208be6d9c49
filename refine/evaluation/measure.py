"""Measures adapters on the gate's sets. Owns the requests to the model and what each figure counts.
Does not define the figures (measures.py) or judge an adapter.

Answers are sampled greedily, with the reminder if the guard adds it, but from the bare model: the
draft is measured. Verdicts are calibrated, as the guard's are, with a threshold of 0.5.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guard import prompts
from refine.critic import Critic
from refine.evaluation.fingerprint import distance, fingerprint
from refine.evaluation.measures import (
    CAUGHT,
    HARMLESS,
    HELD_OUT,
    HELP,
    INJECTION,
    OVER_REFUSAL,
    PASSED,
    Measures,
    Series,
    critic_on,
)
from refine.evaluation.sets import GROUPS, INJECTIONS, Case, Labelled, Sets
from refine.evaluation.truth import Truth
from refine.files import cache_key, write_atomically
from refine.served import Adapter, GenerationParams, Model, answered

_SAME_DISTANCE = 0.02


@dataclass(frozen=True)
class Evaluator:
    """Measures adapters of one model.

    reminder: whether the guard adds it (the paper's step 4). model_revision: of the base model.
    """

    model: Model
    sets: Sets
    truth: Truth
    reminder: bool
    model_revision: str

    async def measure(self, critic: Critic, held_out: Sequence[Case] = ()) -> Measures:
        """Asks, judges and counts. critic: the adapter and its calibration. held_out: flagged
        requests that were not trained on.

        Raises ServerUnavailable.
        """
        adapter = critic.adapter
        series = {
            **await self._harm(adapter),
            **await self._help(critic),
            **await self._critic(critic),
        }
        reads = await fingerprint(self.model, adapter)
        measures = Measures(
            str(adapter), self.truth.name, self.sets.name, self.sets.sha256, series, reads
        )
        return await self._with_held_out(measures, adapter, held_out)

    async def measure_once(
        self, folder: Path, critic: Critic, held_out: Sequence[Case] = ()
    ) -> Measures:
        """As measure(), but reads earlier measures from `folder` if there are any.

        Held-out flags, which change from run to run, are always measured. So is the fingerprint,
        because an adapter of another database may have the same number.
        """
        adapter = critic.adapter
        if adapter == "active":
            raise ValueError("name the active adapter by its version: another may become active")
        file = folder / f"{adapter}-{self._key(critic)}.json"
        measures = Measures.of_json(json.loads(file.read_text())) if file.is_file() else None
        if measures is None or _has_changed(measures, await fingerprint(self.model, adapter)):
            measures = await self.measure(critic)
            write_atomically(file, json.dumps(measures.as_json()) + "\n")
        return await self._with_held_out(measures, adapter, held_out)

    def _key(self, critic: Critic) -> str:
        about = [
            critic.name,
            self.model_revision,
            self.sets.sha256,
            self.truth.name,
            prompts.VERSION,
        ]
        return cache_key([*about, self.reminder])

    async def _with_held_out(
        self, measures: Measures, adapter: Adapter, held_out: Sequence[Case]
    ) -> Measures:
        if not held_out:
            return measures
        answers = await self._answers(held_out, adapter)
        harmful = await self.truth.complied(held_out, answers)
        series = Series(
            tuple(not harm for harm in harmful), tuple(case.category for case in held_out)
        )
        return replace(measures, series={**measures.series, HELD_OUT: series})

    async def _answers(self, cases: Sequence[Case], adapter: Adapter) -> list[str]:
        return await self.model.answers(
            [case.messages for case in cases],
            adapter=adapter,
            params=GenerationParams(max_tokens=self.sets.answer_tokens, reminder=self.reminder),
        )

    async def _harm(self, adapter: Adapter) -> dict[str, Series]:
        cases = self.sets.harmful
        harmful = await self.truth.complied(cases, await self._answers(cases, adapter))
        return {
            HARMLESS + group: Series(
                tuple(not harmful[index] for index in indices),
                tuple(cases[index].category for index in indices),
            )
            for group, indices in _indices_by_group(cases).items()
        }

    async def _help(self, critic: Critic) -> dict[str, Series]:
        """Measures help with harmless requests. An over-refusal is an answer that declines, or that
        the adapter's own critic would withhold."""
        cases = self.sets.harmless
        answers = await self._answers(cases, critic.adapter)
        helped = await self.truth.helped(cases, answers)
        refused = await self.truth.refused(cases, answers)
        judged = [answered(case.messages, text) for case, text in zip(cases, answers, strict=True)]
        withheld = await critic.finds_harmful(self.model, judged, reminder=self.reminder)
        series = {
            HELP + group: Series(tuple(helped[index] for index in indices))
            for group, indices in _indices_by_group(cases).items()
        }
        over_refusals = tuple(
            refusal or flag for refusal, flag in zip(refused, withheld, strict=True)
        )
        return {**series, OVER_REFUSAL: Series(over_refusals, tuple(case.group for case in cases))}

    async def _critic(self, critic: Critic) -> dict[str, Series]:
        cases = (*self.sets.pairs, *self.sets.injections)
        flags = await critic.flags(self.model, cases)
        series = {}
        for group, indices in _indices_by_group(cases).items():
            if group == INJECTIONS:
                series[INJECTION] = Series(tuple(not flags[index] for index in indices))
                continue
            caught = (flags[index] for index in indices if cases[index].harmful)
            passed = (not flags[index] for index in indices if not cases[index].harmful)
            for name, hits in ((CAUGHT, tuple(caught)), (PASSED, tuple(passed))):
                if hits:
                    series[critic_on(group) + name] = Series(hits)
        return series


def _has_changed(measures: Measures, current: Sequence[float]) -> bool:
    return distance(measures.fingerprint, current) > _SAME_DISTANCE


def _indices_by_group(cases: Iterable[Case | Labelled]) -> dict[str, list[int]]:
    """Returns the indices of each group's cases, in the order of GROUPS."""
    indices: dict[str, list[int]] = {group: [] for group in GROUPS}
    for index, case in enumerate(cases):
        indices[case.group].append(index)
    return {group: group_indices for group, group_indices in indices.items() if group_indices}
