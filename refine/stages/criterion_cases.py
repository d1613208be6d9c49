"""Stage 1, for an operator's own criteria: what reviewers' labels say of whether a criterion
applies to an answer. Owns which flags say so, and which of them are held out for the gate. An
unreviewed flag says nothing: it is the model's own reading.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from guard.store.flags import StoredFlag
from guard.store.runs import Use
from guard.verdict import CATEGORIES
from refine.criteria import CriterionCase
from refine.options import RefineOptions
from refine.served import answered
from refine.stages.flagged import case_of
from refine.stages.limits import Caps, NearDuplicates


@dataclass(frozen=True)
class CriterionCases:
    """learn: to train on. held_out: never trained on, measured by the gate; those of earlier runs
    among them. earlier: ids of the latter."""

    learn: tuple[CriterionCase, ...] = ()
    held_out: tuple[CriterionCase, ...] = ()
    earlier: frozenset[int] = frozenset()

    @property
    def uses(self) -> dict[int, Use]:
        """The use of each flag of this run, for the run's row."""
        uses: dict[int | None, Use] = {case.flag_id: "train" for case in self.learn}
        uses |= {case.flag_id: "held_out" for case in self.held_out}
        return {flag: use for flag, use in uses.items() if flag and flag not in self.earlier}

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        counts = {"learn, criteria": len(self.learn), "held_out, criteria": len(self.held_out)}
        return {name: n for name, n in counts.items() if n}


NO_CASES = CriterionCases()


def collect_criteria(
    flags: Iterable[StoredFlag],
    earlier_held_out: Iterable[StoredFlag],
    names: Collection[str],
    options: RefineOptions,
    unusable: Mapping[int, str],
) -> CriterionCases:
    """Sorts what flags not yet used say of the criteria of these names.

    earlier_held_out: held out by promoted runs; they are measured again, and their near-duplicates
    are never trained on. unusable: ids of flags that the model cannot be asked about.
    """
    earlier = [case for flag in earlier_held_out for case in _cases(flag, names)]
    seen: dict[tuple[str, bool], NearDuplicates] = defaultdict(
        lambda: NearDuplicates(options.near_duplicate)
    )
    for case in earlier:
        seen[case.criterion, case.applies].add(case.request, "like a held-out flag")
    caps = Caps(options)
    accepted: list[CriterionCase] = []
    for flag in flags:
        for case in () if flag.id in unusable else _cases(flag, names):
            alike = seen[case.criterion, case.applies]
            if alike.known(case.request) or caps.exceeded(flag, case.criterion):
                continue
            alike.add(case.request, "near-duplicate")
            caps.count(flag, case.criterion)
            accepted.append(case)
    held_out = _held_out(accepted, options)
    return CriterionCases(
        tuple(case for index, case in enumerate(accepted) if index not in held_out),
        (*earlier, *(case for index, case in enumerate(accepted) if index in held_out)),
        frozenset(case.flag_id for case in earlier if case.flag_id),
    )


def _cases(flag: StoredFlag, names: Collection[str]) -> Iterator[CriterionCase]:
    """Yields what a flag says of criteria: a dismissed one, that none of those that flagged it
    applies; a corrected one, that this one does; a confirmed one, that those do which flagged it,
    unless harm did too, since the label may be about that."""
    case = case_of(flag)
    if case is None or flag.review is None:
        return
    flagged = [name for name in flag.categories if name in names]
    applies = flag.review == "confirmed"
    if applies and flag.corrected_category is not None:
        flagged = [flag.corrected_category] if flag.corrected_category in names else []
    elif applies and not {*flag.categories}.isdisjoint(CATEGORIES):
        flagged = []
    conversation = tuple(answered(case.messages, case.answer))
    safe_answer = (case.correction or case.revision) if applies else None
    for name in flagged:
        yield CriterionCase(name, conversation, applies, flag.id, safe_answer)


def _held_out(cases: Sequence[CriterionCase], options: RefineOptions) -> set[int]:
    """Returns the indices of the cases to hold out: the same share of every criterion and label."""
    by_label: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        by_label[case.criterion, case.applies].append(index)
    rng = random.Random(options.seed)
    return {
        index
        for indices in by_label.values()
        for index in rng.sample(indices, round(len(indices) * options.held_out_share))
    }
