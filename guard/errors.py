"""The exceptions the guard raises. Owns their names and stable codes; knows no HTTP (see server/).

    GuardError
    ├── PolicyInvalid      policy_invalid      the policy file does not say what it must
    ├── StoreUnavailable   store_unavailable   the flag store is unreachable or not migrated
    ├── CriticUnavailable  critic_unavailable  no verdict could be had, so nothing may go out
    ├── UnguardedRoute     unguarded_route     a route or handler would reach the engine unguarded
    ├── Unsupported        unsupported         the request asks for what cannot be guarded
    └── TemplateUnusable   template_unusable   the chat template takes no user turn after an answer

Messages name the field and the fix, and never hold any text of an answer.
"""

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
    """The request itself was flagged, and its caller asked for that to block it."""

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
