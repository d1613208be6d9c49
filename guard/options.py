"""How the guard behaves, apart from the policy. Owns these values. Does not read settings
(server/settings.py).
"""

from dataclasses import dataclass

from guard.call import StreamMode
from guard.revise import RevisionOptions
from guard.windows import Windows


@dataclass(frozen=True)
class GuardOptions:
    """How the guard behaves, apart from the policy.

    reminder: add the reminder (the paper's step 4) to the system turn.
    fail_open: release an answer when its critique fails or its flag cannot be stored.
    block_input: refuse flagged requests even when the caller did not ask for it.
    stream: the least strict stream mode; a caller may ask for a stricter one.
    windows: where an unfinished answer is judged.
    revisions: the budget for rewriting a flagged answer.
    in_session: the engine runs GuardedScheduler (vllm/scheduler.py).
    parses_reasoning: the server separates reasoning from the answer (--reasoning-parser).
    """

    reminder: bool
    fail_open: bool
    block_input: bool
    stream: StreamMode
    windows: Windows
    revisions: RevisionOptions
    in_session: bool
    parses_reasoning: bool
