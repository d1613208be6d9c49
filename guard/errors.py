"""The exceptions the guard raises. Owns their names and stable codes; knows no HTTP (see server/).

    GuardError
    ├── PolicyInvalid      policy_invalid      the policy file does not say what it must
    ├── StoreUnavailable   store_unavailable   the flag store is unreachable or not migrated
    ├── CriticUnavailable  critic_unavailable  no verdict could be had, so nothing may go out
    ├── UnguardedRoute     unguarded_route     a route or handler would reach the engine unguarded
    ├── InputBlocked       content_filter      the request was flagged, and is to be blocked then
    ├── Unsupported        unsupported         the request asks for what cannot be guarded
    ├── TemplateUnusable   template_unusable   the chat template takes no user turn after an answer
    ├── FlagUnknown        flag_unknown        no flag has that number
    ├── KeyUnknown         key_unknown         no key has that number
    ├── RunUnknown         run_unknown         no run has that number
    ├── RunOver            run_over            the run has ended, and cannot be cancelled any more
    ├── RunNotStarted      run_not_started     the refine job ended before it had a run
    ├── AdapterRefused     adapter_refused     an adapter's files are not what was registered
    ├── AdapterUnknown     adapter_unknown     no adapter has that number
    ├── AdapterConflict    adapter_conflict    the adapter's state does not allow what was asked
    ├── LeaseHeld          lease_held          another process holds the lease
    └── LeaseLost          lease_lost          the lease that was held is another's now, or gone

Messages name the field and the fix, and never hold any text of an answer.
"""

from datetime import datetime
from typing import ClassVar


class GuardError(Exception):
    """Base of all of them; `code` is stable and is what clients may compare."""

    code: ClassVar[str] = "guard_error"


class PolicyInvalid(GuardError):
    """The message names the file, the field and the fix."""

    code = "policy_invalid"


class StoreUnavailable(GuardError):
    """The flag store failed; its message never holds the database password."""

    code = "store_unavailable"


class CriticUnavailable(GuardError):
    """The critique failed or came too late."""

    code = "critic_unavailable"


class UnguardedRoute(GuardError):
    """The start-up proof found a way past the guard."""

    code = "unguarded_route"


class InputBlocked(GuardError):
    """The request itself was flagged, and its caller or the settings want it blocked then."""

    code = "content_filter"


class Unsupported(GuardError):
    """`param` is the request field to change, or None when the request as a whole is refused."""

    code = "unsupported"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TemplateUnusable(GuardError):
    """The model's chat template cannot carry a critique."""

    code = "template_unusable"


class FlagUnknown(GuardError):
    """The message names the number that no flag has."""

    code = "flag_unknown"


class KeyUnknown(GuardError):
    """The message names the number that no key has."""

    code = "key_unknown"


class RunUnknown(GuardError):
    """The message names the number that no run has."""

    code = "run_unknown"


class RunOver(GuardError):
    """The message says how it ended."""

    code = "run_over"


class RunNotStarted(GuardError):
    """The message is the job's last word."""

    code = "run_not_started"


class AdapterRefused(GuardError):
    """The message names the adapter and what is wrong with it; it is never served."""

    code = "adapter_refused"


class AdapterUnknown(GuardError):
    """The message names the number that no adapter has."""

    code = "adapter_unknown"


class AdapterConflict(GuardError):
    """The message says which state the adapter is in and what it would have to be."""

    code = "adapter_conflict"


class LeaseHeld(GuardError):
    """`holder` has the lease until `until`, unless it renews it."""

    code = "lease_held"

    def __init__(self, message: str, holder: str = "", until: datetime | None = None) -> None:
        super().__init__(message)
        self.holder = holder
        self.until = until


class LeaseLost(GuardError):
    """The holder let the lease expire, and must not go on as if it held it."""

    code = "lease_lost"
