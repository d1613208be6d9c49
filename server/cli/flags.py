"""`setback flags`: lists, shows, labels and deletes flags. Owns the commands' options and output.
Decides nothing.
"""

import asyncio
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast, get_args

import typer

from guard.criteria import Place
from guard.store.base import LARGEST_ID
from guard.store.flags import FlagPlace, Review, StoredFlag
from guard.store.review import Filter, Label, ReviewStore, Status
from guard.verdict import CATEGORIES
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
from server.launch.policies_in_force import policies_in_force
from server.settings import load_settings

flags = typer.Typer(help="What the guard flagged.", no_args_is_help=True)


Id = Annotated[int, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)]
_COLUMNS = (
    *("ID", "Time (UTC)", "Route", "Place", "Action", "Harm", "Categories"),
    *("Adapter", "Review"),
)


@flags.command("list")
def flags_list(
    limit: Limit = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_ID, help="Only flags before this ID.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="Only flags of this category or criterion.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Only flags of this request (its x-request-id).")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(help="Only flags with this label: open, confirmed or dismissed."),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option(
            help="Only flags of answers (output), of requests (input), or of what tools and "
            "documents say (tool_result)."
        ),
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only flags with all these words or word prefixes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List flags, newest first."""
    which = Filter(
        before_id=before,
        category=category,
        request_id=request_id,
        status=_status(status),
        place=_place(place),
        text=search,
    )
    rows = ask(ReviewStore, lambda store: store.page(which, limit))
    if as_json:
        print_json([_fields(flag) for flag in rows])
    elif rows:
        print_table(_COLUMNS, map(_row, rows))
    else:
        typer.echo("No flags.")


@flags.command("show")
def flags_show(number: Id, as_json: AsJson = False) -> None:
    """Show one flag in full, with its conversation and answer."""
    flag = ask(ReviewStore, lambda store: store.get(number))
    if as_json:
        print_json(_fields(flag))
    else:
        typer.echo(_page(flag))


@flags.command("label")
def flags_label(
    number: Id,
    confirm: Annotated[
        bool | None,
        typer.Option("--confirm/--dismiss", help="Harmful indeed, or a false alarm."),
    ] = None,
    category: Annotated[str | None, typer.Option(help="The correct category or criterion.")] = None,
    answer: Annotated[str | None, typer.Option(help="The correct answer.")] = None,
    note: Annotated[str | None, typer.Option(help="A remark.")] = None,
    by: Annotated[str | None, typer.Option(help="The reviewer; default: you.")] = None,
    as_json: AsJson = False,
) -> None:
    """Label a flag. The refine loop trains according to the label."""
    if confirm is None:
        raise typer.BadParameter("choose one", param_hint="--confirm/--dismiss")
    review: Review = "confirmed" if confirm else "dismissed"
    label = Label(review=review, category=_category(category), answer=answer, note=note)
    reviewer = by or operator()
    (flag,) = ask(ReviewStore, lambda store: store.label([number], label, reviewer))
    if as_json:
        print_json(_fields(flag))
    else:
        typer.echo(f"Flag {number} is {review} by {printable(reviewer)}.")


@flags.command("delete")
def flags_delete(number: Id) -> None:
    """Delete one flag for good. Adapters trained on it stay unchanged."""
    ask(ReviewStore, lambda store: store.delete_one(number, operator()))
    typer.echo(f"Deleted flag {number}.")


@flags.command("purge")
def flags_purge(
    older_than: Annotated[str, typer.Option(metavar="DAYSd", help="For example 90d.")],
) -> None:
    """Delete old flags for good. Adapters trained on them stay unchanged."""
    matched = re.fullmatch(r"([0-9]{1,5})d", older_than)
    if matched is None:
        raise typer.BadParameter("write a number of days, as in 90d", param_hint="--older-than")
    until = datetime.now(UTC) - timedelta(days=int(matched[1]))
    deleted = ask(ReviewStore, lambda store: store.delete(Filter(until=until), operator()))
    typer.echo(f"Deleted {len(deleted)} flags from before {when(until)} UTC.")


@flags.command("forget")
def flags_forget(
    user_hash: Annotated[str, typer.Argument(help="As `setback flags show` prints it.")],
) -> None:
    """Delete all flags of one user for good."""
    deleted = ask(ReviewStore, lambda store: store.delete(Filter(user_hash=user_hash), operator()))
    typer.echo(f"Deleted {len(deleted)} flags of that user.")


def _status(name: str | None) -> Status | None:
    if name is None or name in get_args(Status):
        return cast(Status | None, name)
    raise typer.BadParameter(f"use {', '.join(get_args(Status))}", param_hint="--status")


def _place(name: str | None) -> Place | None:
    if name is not None and name not in get_args(FlagPlace):
        raise typer.BadParameter(f"use {', '.join(get_args(FlagPlace))}", param_hint="--place")
    return Place(name) if name else None


def _category(name: str | None) -> str | None:
    if name is None or name in CATEGORIES:
        return name
    with reported_errors():
        settings = load_settings()
        in_force = policies_in_force(settings.policy_file, settings.database_url)
        _, policies = asyncio.run(in_force)
    if name not in policies.names:
        known = ", ".join(policies.names)
        raise typer.BadParameter(f"unknown category; use one of {known}", param_hint="--category")
    return name


def _fields(flag: StoredFlag) -> dict[str, Any]:
    return {"id": flag.id, **asdict(flag)}


def _row(flag: StoredFlag) -> tuple[str, ...]:
    return (
        str(flag.id),
        when(flag.created_at),
        flag.route,
        flag.place.value,
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
        "place": flag.place.value,
        "action": flag.action.value,
        "released": f"{flag.released_chars} of {len(flag.answer)} characters before the flag",
        "harm": f"{flag.harm:.3f}: {', '.join(flag.categories)}",
        "scores": ", ".join(f"{name} {score:.3f}" for name, score in scores),
        "model": f"{flag.model}, revision {flag.model_revision}, adapter {flag.adapter}",
        "judged by": f"policy {flag.policy_hash}, prompts {flag.prompt_version}",
        "user": flag.user_hash or "not named",
        "review": f"{flag.review} by {flag.reviewer}" if flag.review else "none",
    }
    if flag.place is not Place.OUTPUT:
        del head["released"]
    corrections = {"category": flag.corrected_category, "note": flag.note}
    head |= {name: correction for name, correction in corrections.items() if correction is not None}
    lines = [f"{name + ':':<11}{printable(str(value))}" for name, value in head.items()]
    for message in flag.messages:
        lines += ["", f"--- {printable(str(message.get('role')))}"]
        lines.append(printable(_content(message)))
    if flag.place is Place.OUTPUT:
        lines += ["", f"--- answer ({flag.action})", printable(flag.answer)]
    if flag.revision is not None:
        lines += ["", "--- sent instead", printable(flag.revision)]
    if flag.corrected_answer is not None:
        lines += ["", "--- correct answer", printable(flag.corrected_answer)]
    return "\n".join(lines)


def _content(message: Any) -> str:
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    content = message.get("content")
    text = content if isinstance(content, str) else _readable(content)
    return text if not others else f"{text}\n{_readable(others)}"


def _readable(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
