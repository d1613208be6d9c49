"""Stage 1: chooses the flags that a run trains on. Owns which are learned from, held out or left
out, and counts the last by reason. Reads no database: it turns flags into a Collection.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from guard.criteria import Place
from guard.store.flags import StoredFlag
from guard.store.runs import Use
from guard.verdict import CATEGORIES
from refine.options import RefineOptions
from refine.stages.criterion_cases import NO_CASES, CriterionCases
from refine.stages.flagged import FlaggedCase, case_of
from refine.stages.limits import Caps, NearDuplicates


@dataclass(frozen=True)
class Collection:
    """The flags of one run.

    learn: harmful answers to train on. fine: answers that a reviewer dismissed as harmless.
    held_out: never trained on; measured by the gate. repeats: ids of near-duplicates of these, or
    of a flag that an earlier run held out. left_out: counts by reason. criteria: answers of which a
    reviewer's label says whether a criterion applies to them.
    """

    learn: tuple[FlaggedCase, ...]
    fine: tuple[FlaggedCase, ...]
    held_out: tuple[FlaggedCase, ...]
    repeats: tuple[int, ...]
    left_out: Mapping[str, int]
    criteria: CriterionCases = NO_CASES

    @property
    def lessons(self) -> int:
        """The number of answers that are no false alarms and are learned from."""
        return len(self.learn) + len(self.criteria.learn)

    @property
    def uses(self) -> dict[int, Use]:
        """The use of each flag, for the run's row."""
        uses: dict[int, Use] = {case.flag_id: "train" for case in (*self.learn, *self.fine)}
        uses |= {case.flag_id: "held_out" for case in self.held_out}
        return self.criteria.uses | uses | dict.fromkeys(self.repeats, "repeat")

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        sizes = {"learn": len(self.learn), "fine": len(self.fine), "held_out": len(self.held_out)}
        sizes |= self.criteria.counts
        return {**sizes, **{f"left out: {why}": n for why, n in sorted(self.left_out.items())}}


def collect(
    flags: Iterable[StoredFlag],
    earlier_held_out: Iterable[StoredFlag],
    options: RefineOptions,
    unusable: Mapping[int, str] = MappingProxyType({}),
    criterion_cases: CriterionCases = NO_CASES,
) -> Collection:
    """Sorts the flags not yet used. The oldest come first, so that the result is reproducible.

    earlier_held_out: held out by promoted runs; their near-duplicates are never trained on.
    unusable: ids of flags that the model cannot be asked about, with the reason. criterion_cases:
    what these flags say of criteria.
    """
    left_out: Counter[str] = Counter()
    seen = NearDuplicates(options.near_duplicate)
    for flag in earlier_held_out:
        if (case := case_of(flag)) is not None:
            seen.add(case.request, "like a held-out flag")
    criterion_flags = criterion_cases.uses.keys()
    accepted: list[tuple[FlaggedCase, StoredFlag]] = []
    repeats: list[int] = []
    caps = Caps(options)
    for flag in flags:
        case = case_of(flag)
        if flag.place is not Place.OUTPUT:
            left_out["flagged in the input"] += 1
        elif case is None:
            left_out["not text"] += 1
        elif case.category not in CATEGORIES:
            if flag.id not in criterion_flags:
                left_out["flagged for a criterion alone"] += 1
        elif flag.id in unusable:
            left_out[unusable[flag.id]] += 1
        elif options.require_review and flag.review is None:
            left_out["not reviewed"] += 1
        elif reason := seen.known(case.request):
            left_out[reason] += 1
            repeats.append(flag.id)
        elif reason := caps.exceeded(flag, case.category):
            left_out[reason] += 1
        else:
            seen.add(case.request, "near-duplicate")
            caps.count(flag, case.category)
            accepted.append((case, flag))
    learn, fine, held_out = _split(accepted, options)
    return Collection(learn, fine, held_out, tuple(repeats), left_out, criterion_cases)


def _split(
    accepted: Sequence[tuple[FlaggedCase, StoredFlag]], options: RefineOptions
) -> tuple[tuple[FlaggedCase, ...], tuple[FlaggedCase, ...], tuple[FlaggedCase, ...]]:
    """Returns the flags to train on, the dismissed ones and the held-out ones."""
    harmful = [case for case, flag in accepted if flag.review != "dismissed"]
    fine = tuple(case for case, flag in accepted if flag.review == "dismissed")
    count = round(len(harmful) * options.held_out_share)
    held_out = set(random.Random(options.seed).sample(range(len(harmful)), count))
    return (
        tuple(case for index, case in enumerate(harmful) if index not in held_out),
        fine,
        tuple(case for index, case in enumerate(harmful) if index in held_out),
    )
