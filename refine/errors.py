"""What ends a refine run early. Owns the names; server/cli/refine.py turns them into messages.

RefineError
├── ServerUnavailable   the server that lends its model does not answer, or refuses
├── RunInterrupted      the run lost its lease to another job
├── RunCancelled        somebody wants the run to end
├── RunGivenUp          a stage of the run failed too often
├── DataInvalid         a file given by the user does not say what it must
├── BenchmarkBusy       another command writes the verdicts on the same set and server
└── ServerChanged       another model, policy or adapter serves than when measuring began
"""


class RefineError(Exception):
    """Base of all of them. The message says what to do."""


class ServerUnavailable(RefineError):
    """The message names the server and what it said."""


class RunInterrupted(RefineError):
    """Another job holds the lease now; this one stops without writing more."""


class RunCancelled(RefineError):
    """The message is who wants that."""


class RunGivenUp(RefineError):
    """The message says at which stage, and what the last failure was."""


class TrainingFailed(RefineError):
    """The trainer's own output, on standard error, says why."""


class DataInvalid(RefineError):
    """The message names the file and line."""


class BenchmarkBusy(RefineError):
    """The message names the file."""


class ServerChanged(RefineError):
    """The message says what served before and what serves now.

    adapter_only: model and policy are the same, so that verdicts that name their adapter stand.
    """

    def __init__(self, message: str, *, adapter_only: bool) -> None:
        super().__init__(message)
        self.adapter_only = adapter_only
