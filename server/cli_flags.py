"""`setback flags`: what the guard flagged, listed, shown and labelled. Owns these commands' output;
decides nothing.
"""

import getpass
import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from guard.store.flags import FlagStore, Review, StoredFlag
from guard.verdict import CATEGORIES
from server.terminal import (
    LARGEST_ID,
    AsJson,
    Limit,
    ask,
    fail,
    print_json,
    print_table,
    printable,
    when,
)

flags = typer.Typer(help="What the guard flagged.", no_args_is_help=True)

Id = Annotated[int, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)]


@flags.command("list")
def flags_list(
    limit: Limit = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_ID, help="Only flags before this ID.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Only flags of this category.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Only flags of this request (its x-request-id).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List flags, newest first."""
    if category is not None and category not in CATEGORIES:
        known = ", ".join(CATEGORIES)
        raise typer.BadParameter(f"unknown category; use one of {known}", param_hint="--category")
    found = ask(FlagStore, lambda store: store.list(limit, before, category, request_id))
    if as_json:
        print_json([_fields(flag) for flag in found])
    elif found:
        columns = "ID", "Time (UTC)", "Route", "Action", "Harm", "Categories", "Adapter", "Review"
        print_table(columns, map(_row, found))
    else:
        typer.echo("No flags.")


@flags.command("show")
def flags_show(number: Id, as_json: AsJson = False) -> None:
    """Show one flag whole, with its conversation and answer."""
    flag = _existing(ask(FlagStore, lambda store: store.get(number)), number)
    if as_json:
        print_json(_fields(flag))
    else:
        typer.echo(_page(flag))


@flags.command("label")
def flags_label(
    number: Id,
    confirm: Annotated[
        bool | None,
        typer.Option("--confirm/--dismiss", help="It is harmful indeed, or fine after all."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who says so; you, if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a flag is right; the refine loop learns from it accordingly."""
    if confirm is None:
        raise typer.BadParameter("say which", param_hint="--confirm/--dismiss")
    review: Review = "confirmed" if confirm else "dismissed"
    reviewer = by or getpass.getuser()
    flag = _existing(ask(FlagStore, lambda store: store.label(number, review, reviewer)), number)
    if as_json:
        print_json(_fields(flag))
    else:
        typer.echo(f"Flag {number} is {review} by {printable(reviewer)}.")


def _existing(flag: StoredFlag | None, number: int) -> StoredFlag:
    if flag is None:
        fail(f"there is no flag {number}; `setback flags list` shows those there are", code=1)
    return flag


def _fields(flag: StoredFlag) -> dict[str, Any]:
    return {"id": flag.id, **asdict(flag)}


def _row(flag: StoredFlag) -> tuple[str, ...]:
    return (
        str(flag.id),
        when(flag.created_at),
        flag.route,
        flag.action.value,
        f"{flag.harm:.2f}",
        ", ".join(flag.categories),
        flag.adapter,
        flag.review or "",
    )


def _page(flag: StoredFlag) -> str:
    scores = sorted(flag.category_scores.items(), key=lambda item: -item[1])
    head = {
        "flag": flag.id,
        "time": f"{when(flag.created_at)} UTC",
        "request": f"{flag.request_id}, choice {flag.choice}, {flag.route}",
        "action": flag.action.value,
        "let out": f"{flag.released_chars} of {len(flag.answer)} characters before the flag",
        "harm": f"{flag.harm:.3f}: {', '.join(flag.categories)}",
        "scores": ", ".join(f"{name} {score:.3f}" for name, score in scores),
        "model": f"{flag.model}, revision {flag.model_revision}, adapter {flag.adapter}",
        "judged by": f"policy {flag.policy_hash}, prompts {flag.prompt_version}",
        "user": flag.user_hash or "not named",
        "review": f"{flag.review} by {flag.reviewer}" if flag.review else "none",
    }
    lines = [f"{name + ':':<11}{printable(str(value))}" for name, value in head.items()]
    for message in flag.messages:
        lines += ["", f"--- {printable(str(message.get('role')))}"]
        lines.append(printable(_content(message)))
    lines += ["", f"--- answer ({flag.action})", printable(flag.answer)]
    if flag.revision is not None:
        lines += ["", "--- let out instead", printable(flag.revision)]
    return "\n".join(lines)


def _content(message: Any) -> str:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    content = message.get("content")
    text = content if isinstance(content, str) else _readable(content)
    return text if not others else f"{text}\n{_readable(others)}"


def _readable(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
