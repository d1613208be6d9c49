"""A running server's verdicts on labelled lines. Owns in which form each kind of line is judged.
Does not read the lines (refine/benchmarks) or count (refine/calibrate).
"""

from collections.abc import Sequence

from refine.benchmarks.rows import BenchmarkRow
from refine.served import Adapter, PolicyText, ServedModel, ServedVerdict


async def read_verdicts(
    model: ServedModel,
    rows: Sequence[BenchmarkRow],
    adapter: Adapter,
    policy: PolicyText | None = None,
) -> list[ServedVerdict]:
    """Returns verdicts in the order of the rows: on answers in context, otherwise on last turns.

    policy: its criteria are read too. Raises ServerUnavailable.
    """
    answers = [list(row.messages) for row in rows if row.kind == "answer"]
    texts = [row.messages[-1]["content"] for row in rows if row.kind != "answer"]
    on_answers = iter(
        await model.verdicts("conversations", answers, adapter=adapter, policy=policy)
    )
    on_texts = iter(await model.verdicts("texts", texts, adapter=adapter, policy=policy))
    return [next(on_answers if row.kind == "answer" else on_texts) for row in rows]
