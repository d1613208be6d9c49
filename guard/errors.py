"""The exceptions the guard raises. Owns their names and stable codes. Knows no HTTP (see server/).

    GuardError
    ├── VllmIncompatible   vllm_incompatible   the installed vLLM lacks something the guard uses
    ├── PolicyInvalid      policy_invalid      the policy file is malformed
    ├── PolicyUnknown      policy_unknown      no policy has that name
    ├── PolicyRefused      policy_refused      a caller asked for a policy that it cannot have
    ├── StoreUnavailable   store_unavailable   the flag store is unreachable or not migrated
    ├── CriticUnavailable  critic_unavailable  there is no verdict, so nothing may be released
    ├── UnguardedRoute     unguarded_route     a route or handler would reach the engine unguarded
    ├── InputBlocked       content_filter      the request was flagged and flagged input is blocked
    ├── Unsupported        unsupported         the guard cannot judge this kind of request
    ├── TemplateUnusable   template_unusable   the chat template has no user turn after an answer
    ├── FlagUnknown        flag_unknown        no flag has that number
    ├── KeyUnknown         key_unknown         no key has that number
    ├── RunUnknown         run_unknown         no run has that number
    ├── RunOver            run_over            the run has ended and cannot be cancelled
    ├── RunNotStarted      run_not_started     the refine job ended before it created a run
    ├── AdapterRefused     adapter_refused     the adapter's files are invalid or were changed
    ├── AdapterUnknown     adapter_unknown     no adapter has that number
    ├── AdapterConflict    adapter_conflict    the adapter's state does not allow the change
    ├── LeaseHeld          lease_held          another process holds the lease
    └── LeaseLost          lease_lost          the lease expired or another process took it

Messages name the field and the fix. They never quote an answer.
"""

from datetime import datetime
from typing import ClassVar


class GuardError(Exception):
    """The base class. `code` is stable: clients may compare it."""

    code: ClassVar[str] = "guard_error"


class VllmIncompatible(GuardError):
    """The message names every piece of vLLM that differs, and the version to install."""

    code = "vllm_incompatible"


class PolicyInvalid(GuardError):
    """The message names the file, the field and the fix."""

    code = "policy_invalid"


class PolicyUnknown(GuardError):
    """The policy file has no policy of that name."""

    code = "policy_unknown"


class PolicyRefused(GuardError):
    """A caller asked for a policy that does not exist, or is not as strict as its own."""

    param = "x-setback-policy"

    code = "policy_refused"


class StoreUnavailable(GuardError):
    """The flag store failed. The message never holds the database password."""

    code = "store_unavailable"


class CriticUnavailable(GuardError):
    """The critique failed or timed out."""

    code = "critic_unavailable"


class UnguardedRoute(GuardError):
    """The start-up check found a route that bypasses the guard."""

    code = "unguarded_route"


class InputBlocked(GuardError):
    """The request itself was flagged, and the caller or the settings block flagged input."""

    code = "content_filter"


class Unsupported(GuardError):
    """`param` is the request field to change, or None when the whole request is refused."""

    code = "unsupported"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TemplateUnusable(GuardError):
    """The model's chat template cannot be used for a critique."""

    code = "template_unusable"


class FlagUnknown(GuardError):
    """The message names the number."""

    code = "flag_unknown"


class KeyUnknown(GuardError):
    """The message names the number."""

    code = "key_unknown"


class RunUnknown(GuardError):
    """The message names the number."""

    code = "run_unknown"


class RunOver(GuardError):
    """The message says how the run ended."""

    code = "run_over"


class RunNotStarted(GuardError):
    """The message is the last line that the job wrote."""

    code = "run_not_started"


class AdapterRefused(GuardError):
    """The message names the adapter and what is wrong with it. It is never served."""

    code = "adapter_refused"


class AdapterUnknown(GuardError):
    """The message names the number."""

    code = "adapter_unknown"


class AdapterConflict(GuardError):
    """The message names the adapter's state and the state that is needed."""

    code = "adapter_conflict"


class LeaseHeld(GuardError):
    """`holder` has the lease until `until`, and may renew it."""

    code = "lease_held"

    def __init__(self, message: str, holder: str = "", until: datetime | None = None) -> None:
        super().__init__(message)
        self.holder = holder
        self.until = until


class LeaseLost(GuardError):
    """The lease expired. The former holder must stop what it did under it."""

    code = "lease_lost"
