"""Measures adapters on the gate's sets. Owns what is asked and what each figure counts (the figures
are measures.py's). Judges no adapter.

Answers are drawn greedily, with the reminder where the guard puts it, but from the bare model: what
is measured is the draft. Verdicts are on the adapter's scale, as the guard's are; 0.5 decides.
"""

import hashlib
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
from refine.files import write_atomically
from refine.served import Adapter, Model, answered

_SAME = 0.02


@dataclass(frozen=True)
class Measuring:
    """What adapters of one model are measured with.

    reminder: whether the guard puts it (the paper's step 4). revision: of the model.
    """

    model: Model
    sets: Sets
    truth: Truth
    reminder: bool
    revision: str

    async def measure(self, critic: Critic, held_out: Sequence[Case] = ()) -> Measures:
        """Asks, judges and counts. critic: the adapter that is measured, and the scale of its
        verdicts. held_out: flagged requests that nothing was learned from.

        Raises ServerUnavailable.
        """
        adapter = critic.adapter
        series = {
            **await self._harm(adapter),
            **await self._help(critic),
            **await self._critic(critic),
        }
        found = await fingerprint(self.model, adapter)
        measures = Measures(
            str(adapter), self.truth.name, self.sets.name, self.sets.sha256, series, found
        )
        return await self._with_held_out(measures, adapter, held_out)

    async def measure_once(
        self, folder: Path, critic: Critic, held_out: Sequence[Case] = ()
    ) -> Measures:
        """As measure(), but what was measured before of the same is read from `folder`.

        The held-out flags, which change from run to run, are always measured; so is the
        fingerprint, since another database may give the same number to another adapter.
        """
        adapter = critic.adapter
        if adapter == "active":
            raise ValueError("name the active adapter by its version: what is active changes")
        file = folder / f"{adapter}-{self._key(critic)}.json"
        measures = Measures.of_json(json.loads(file.read_text())) if file.is_file() else None
        if measures is None or _differs(measures, await fingerprint(self.model, adapter)):
            measures = await self.measure(critic)
            write_atomically(file, json.dumps(measures.as_json()) + "\n")
        return await self._with_held_out(measures, adapter, held_out)

    def _key(self, critic: Critic) -> str:
        about = [critic.name, self.revision, self.sets.sha256, self.truth.name, prompts.VERSION]
        return hashlib.sha256(json.dumps([*about, self.reminder]).encode()).hexdigest()[:16]

    async def _with_held_out(
        self, measures: Measures, adapter: Adapter, held_out: Sequence[Case]
    ) -> Measures:
        if not held_out:
            return measures
        answers = await self._answers(held_out, adapter)
        harmful = await self.truth.complied(held_out, answers)
        series = Series(tuple(not h for h in harmful), tuple(case.category for case in held_out))
        return replace(measures, series={**measures.series, HELD_OUT: series})

    async def _answers(self, cases: Sequence[Case], adapter: Adapter) -> list[str]:
        return await self.model.answers(
            [case.messages for case in cases],
            adapter=adapter,
            max_tokens=self.sets.answer_tokens,
            reminder=self.reminder,
        )

    async def _harm(self, adapter: Adapter) -> dict[str, Series]:
        cases = self.sets.harmful
        harmful = await self.truth.complied(cases, await self._answers(cases, adapter))
        return {
            HARMLESS + group: Series(
                tuple(not harmful[place] for place in places),
                tuple(cases[place].category for place in places),
            )
            for group, places in _groups(cases).items()
        }

    async def _help(self, critic: Critic) -> dict[str, Series]:
        """Whether harmless requests are helped with; over-refusal is an answer that declines, or
        that the adapter's own critic would withhold."""
        cases = self.sets.harmless
        answers = await self._answers(cases, critic.adapter)
        helped = await self.truth.helped(cases, answers)
        refused = await self.truth.refused(cases, answers)
        judged = [answered(case.messages, text) for case, text in zip(cases, answers, strict=True)]
        withheld = await critic.finds_harmful(self.model, judged, reminder=self.reminder)
        series = {
            HELP + group: Series(tuple(helped[place] for place in places))
            for group, places in _groups(cases).items()
        }
        over = tuple(one or other for one, other in zip(refused, withheld, strict=True))
        return {**series, OVER_REFUSAL: Series(over, tuple(case.group for case in cases))}

    async def _critic(self, critic: Critic) -> dict[str, Series]:
        judged = (*self.sets.pairs, *self.sets.injections)
        flags = await critic.flags(self.model, judged)
        series = {}
        for group, places in _groups(judged).items():
            if group == INJECTIONS:
                series[INJECTION] = Series(tuple(not flags[place] for place in places))
                continue
            caught = (flags[place] for place in places if judged[place].harmful)
            passed = (not flags[place] for place in places if not judged[place].harmful)
            for name, found in ((CAUGHT, tuple(caught)), (PASSED, tuple(passed))):
                if found:
                    series[critic_on(group) + name] = Series(found)
        return series


def _differs(measures: Measures, found: Sequence[float]) -> bool:
    return distance(measures.fingerprint, found) > _SAME


def _groups(cases: Iterable[Case | Labelled]) -> dict[str, list[int]]:
    """The places of each group's cases; groups in their usual order."""
    places: dict[str, list[int]] = {group: [] for group in GROUPS}
    for place, case in enumerate(cases):
        places[case.group].append(place)
    return {group: found for group, found in places.items() if found}
