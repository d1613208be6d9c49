"""The errors that end a refine run early. Owns their names. server/cli/terminal.py prints them.

RefineError
├── ServerUnavailable   the server with the model does not answer, or refuses
├── RunInterrupted      the run lost its lease to another job
├── RunCancelled        the run was cancelled
├── RunGivenUp          a stage of the run failed too often
├── DataInvalid         a file given by the user is malformed
├── BenchmarkBusy       another command writes the verdicts on the same set and server
└── ServerChanged       the served model, policy or adapter changed during an evaluation
"""


class RefineError(Exception):
    """The base class. The message says what to do."""


class ServerUnavailable(RefineError):
    """The message names the server and its error."""


class RunInterrupted(RefineError):
    """Another job holds the lease. This one stops without writing more."""


class RunCancelled(RefineError):
    """The message is who cancelled it."""


class RunGivenUp(RefineError):
    """The message names the stage and the last failure."""


class TrainingFailed(RefineError):
    """The trainer's output on standard error says why."""


class DataInvalid(RefineError):
    """The message names the file and line."""


class BenchmarkBusy(RefineError):
    """The message names the file."""


class ServerChanged(RefineError):
    """The message says what served before and what serves now.

    adapter_only: model and policy are unchanged, so verdicts that name their adapter remain valid.
    """

    def __init__(self, message: str, *, adapter_only: bool) -> None:
        super().__init__(message)
        self.adapter_only = adapter_only
