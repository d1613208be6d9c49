"""`setback keys` and `setback audit`: API keys and the audit trail. Owns these commands' output.
Decides nothing.
"""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from guard.policy_file import load_policies
from guard.store.audit import AuditStore
from guard.store.base import LARGEST_ID
from guard.store.keys import Key, KeyStore
from server.cli.terminal import (
    AsJson,
    Limit,
    ask,
    operator,
    print_json,
    print_table,
    printable,
    reported_errors,
    when,
)
from server.settings import load_settings

_MOST_REQUESTS = 1_000_000

keys = typer.Typer(help="Who may call the server.", no_args_is_help=True)


class RoleOption(StrEnum):
    """What a key is for. Each role may do what the roles before it may."""

    CALL = "call"
    REVIEW = "review"
    ADMIN = "admin"


@keys.command("make")
def keys_make(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    role: Annotated[
        RoleOption,
        typer.Option(help="call: the model; review: flags too; admin: everything."),
    ] = RoleOption.CALL,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_REQUESTS, help="Its rate limit; default: no limit."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the policy file: the policy of its requests."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it once: only its hash is stored."""
    who = operator()
    if policy is not None:
        _check_policy(policy)
    key, secret = ask(
        KeyStore,
        lambda store: store.make(
            name, role.value, by=who, requests_per_minute=requests_per_minute, policy=policy
        ),
    )
    if as_json:
        print_json({**_fields(key), "key": secret})
    else:
        typer.echo(secret)


@keys.command("list")
def keys_list(as_json: AsJson = False) -> None:
    """List all keys, oldest first, including revoked ones."""
    rows = ask(KeyStore, lambda store: store.list())
    if as_json:
        print_json([_fields(key) for key in rows])
    elif rows:
        columns = "ID", "Name", "Role", "Key", "Per minute", "Policy"
        print_table((*columns, "Created (UTC)", "Revoked (UTC)"), map(_row, rows))
    else:
        typer.echo("No keys: the server answers this machine only.")


@keys.command("revoke")
def keys_revoke(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)],
) -> None:
    """Revoke a key for good. Servers follow within seconds."""
    key = ask(KeyStore, lambda store: store.revoke(number, by=operator()))
    typer.echo(f"Key {number} ({printable(key.name)}) is revoked.")


def audit(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List who labelled, promoted, deleted or created keys, newest first."""
    entries = ask(AuditStore, lambda store: store.list(limit))
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif entries:
        rows = (
            (when(entry.created_at), entry.actor, entry.event, entry.subject, str(entry.details))
            for entry in entries
        )
        print_table(("Time (UTC)", "Who", "What", "Of what", "Details"), rows)
    else:
        typer.echo("No entries.")


def _check_policy(name: str) -> None:
    """Refuses a name that the policy file of this machine's settings does not have."""
    with reported_errors():
        policies = load_policies(load_settings().policy_file)
    if policies.find(name) is None:
        known = ", ".join(one.name for one in policies)
        raise typer.BadParameter(
            f"the policy file has no {name!r}; use one of {known}", param_hint="--policy"
        )


def _fields(key: Key) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _row(key: Key) -> tuple[str, ...]:
    created, revoked = when(key.created_at), when(key.revoked_at)
    limit = str(key.requests_per_minute or "")
    shown = str(key.id), key.name, key.role, f"...{key.hint}"
    return *shown, limit, key.policy or "", created, revoked
