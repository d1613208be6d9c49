"""Which policy a request gets: by its key, its model, its route, or a header that makes it
stricter. Owns the choice. Does not read the policy file (policy_file.py) or decide on verdicts
(policy.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from guard.criteria import Criterion
from guard.errors import PolicyRefused, PolicyUnknown
from guard.policy import DEFAULT_POLICY, Policy


@dataclass(frozen=True)
class PolicySet:
    """The policies of one file.

    default: of requests that get no other. named: the others. models, routes: the names of the
    policies that requests to a model or a route get.
    """

    default: Policy
    named: Mapping[str, Policy] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Policy]:
        yield self.default
        yield from self.named.values()

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria of all policies, each once."""
        return tuple(dict.fromkeys(one for policy in self for one in policy.criteria))

    @property
    def names(self) -> tuple[str, ...]:
        """The categories, then all criteria's names."""
        return tuple(dict.fromkeys(name for policy in self for name in policy.names))

    def find(self, name: str) -> Policy | None:
        """Returns the policy of that name, or None."""
        return self.default if name == DEFAULT_POLICY else self.named.get(name)

    def choose(
        self, *, key: str | None, model: object, route: str, requested: str | None = None
    ) -> Policy:
        """Returns a request's policy.

        key: the policy of the caller's key, which counts first. model: as the request names it.
        requested: the policy that the caller wants instead. Raises PolicyUnknown for a key's policy
        that does not exist, and PolicyRefused where the requested one does not, or is not at least
        as strict as the one that the request gets.
        """
        by_model = self.models.get(model) if isinstance(model, str) else None
        name = key or by_model or self.routes.get(route) or DEFAULT_POLICY
        policy = self.find(name)
        if policy is None:
            raise PolicyUnknown(
                f"This key has the policy {name!r}, which the policy file does not have; the "
                "server's operator has to add it, or to make another key."
            )
        if requested is None:
            return policy
        wanted = self.find(requested)
        if wanted is None:
            known = ", ".join(one.name for one in self)
            raise PolicyRefused(f"There is no policy {requested!r}; use one of {known}.")
        if not wanted.is_as_strict_as(policy):
            raise PolicyRefused(
                f"The policy {wanted.name!r} is not as strict as {policy.name!r}, which this "
                "request gets; a caller can only choose a stricter one."
            )
        return wanted


@dataclass
class Policies:
    """The policies in force. They may be exchanged; a request keeps the one that it got."""

    current: PolicySet
