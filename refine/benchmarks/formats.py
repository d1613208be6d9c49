"""The formats of public benchmark sets, and of a user's own JSON lines. Owns which columns each
format has and what they mean. Does not parse files (records.py).

A set is read as it was published, and refused with a list of all wrong lines. Records without a
label or a text to judge are left out and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refine.benchmarks.own_lines import own_line
from refine.benchmarks.records import (
    Part,
    Record,
    RecordInvalid,
    csv_records,
    json_document,
    json_lines,
    line_of_key,
    read_text,
    suffix,
)
from refine.benchmarks.rows import BenchmarkRow, BenchmarkSet, answer, request, text
from refine.errors import DataInvalid

LeftOut = str
"""Why a record, or a part of it, is left out."""
_Reader = Callable[[Record], Iterator[BenchmarkRow | LeftOut]]
_Files = Literal["jsonl", "csv", "json"]
_MAX_PROBLEMS = 10
_OPENAI_LABELS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
_HUMAN_LABELS = ("human_0", "human_1", "human_2")
NO_LABEL, NO_ANSWER = "no label", "no answer"


@dataclass(frozen=True)
class Format:
    """How one set is published.

    files: the file types it comes in, each with its reader. columns: required in a CSV file.
    description: for messages.
    """

    files: dict[_Files, _Reader]
    columns: tuple[str, ...]
    description: str


def _openai_moderation(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    names = [name for name in _OPENAI_LABELS if record.fields.get(name) is not None]
    content = record.text("prompt")
    if names:
        labels = [record.label(name, "1", "0") for name in names]
        yield text(record.line, content, harmful=any(labels))
    else:
        yield NO_LABEL


def _xstest(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    harmful = record.label("label", "unsafe", "safe")
    yield request(record.line, record.text("prompt"), harmful=harmful, group=record.text("type"))


def _toxicchat(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    harmful = record.label("toxicity", "1", "0")
    yield text(record.line, record.text("user_input"), harmful=harmful)


def _beavertails(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    harmful = record.label("is_safe", "false", "true")
    yield _answer_row(record, "response", harmful)


def _saferlhf(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    for number in (0, 1):
        harmful = record.label(f"is_response_{number}_safe", "false", "true")
        yield _answer_row(record, f"response_{number}", harmful)


def _answer_row(record: Record, name: str, harmful: bool) -> BenchmarkRow | LeftOut:
    prompt = record.text("prompt")
    if not record.has(name):
        return NO_ANSWER
    return answer(record.line, prompt, record.text(name), harmful=harmful)


def _harmbench_behaviour(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    prompt = record.text("Behavior")
    if record.has("ContextString"):
        # Joined as in HarmBench's own direct requests.
        prompt = f"{record.text('ContextString')}\n\n---\n\n{prompt}"
    group = record.text("SemanticCategory") if record.has("SemanticCategory") else ""
    yield request(record.line, prompt, harmful=True, group=group)


def _harmbench_completion(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    if record.has(_HUMAN_LABELS[0]):
        votes = [record.label(name, "1", "0") for name in _HUMAN_LABELS]
        harmful = sum(votes) * 2 > len(votes)
    else:
        harmful = record.label("label", "1", "0")
    prompt = record.text("test_case")
    if record.has("generation"):
        yield answer(record.line, prompt, record.text("generation"), harmful=harmful)
    else:
        yield NO_ANSWER


def _wildguard(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    if record.has("response_harm_label"):
        harmful = record.label("response_harm_label", "harmful", "unharmful")
        yield _answer_row(record, "response", harmful)
    else:
        yield NO_LABEL


def _wildguard_requests(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    if record.has("prompt_harm_label"):
        harmful = record.label("prompt_harm_label", "harmful", "unharmful")
        yield request(record.line, record.text("prompt"), harmful=harmful)
    else:
        yield NO_LABEL


def _ailuminate(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    prompt = record.text("prompt_text")
    yield request(record.line, prompt, harmful=True, group=record.text("hazard"))


def _hatecheck(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    harmful = record.label("label_gold", "hateful", "non-hateful")
    group = record.text("functionality")
    yield text(record.line, record.text("test_case"), harmful=harmful, group=group)


def _own_line(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    yield own_line(record)


FORMATS: dict[str, Format] = {
    "openai_moderation": Format(
        {"jsonl": _openai_moderation},
        ("prompt",),
        'JSON lines with "prompt" and the labels S, H, V, HR, SH, S3, H2, V2 (0 or 1)',
    ),
    "xstest": Format(
        {"csv": _xstest},
        ("prompt", "type", "label"),
        "CSV with the columns id, prompt, type, label (safe or unsafe), focus, note",
    ),
    "toxicchat": Format(
        {"csv": _toxicchat},
        ("user_input", "toxicity"),
        "CSV with the columns conv_id, user_input, model_output, human_annotation, toxicity (0 or "
        "1), jailbreaking",
    ),
    "beavertails": Format(
        {"jsonl": _beavertails},
        ("prompt", "response", "is_safe"),
        'JSON lines with "prompt", "response", "category" and "is_safe" (true or false)',
    ),
    "saferlhf": Format(
        {"jsonl": _saferlhf},
        ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"),
        'JSON lines with "prompt", "response_0", "response_1", "is_response_0_safe" and '
        '"is_response_1_safe" (true or false)',
    ),
    "harmbench": Format(
        {"csv": _harmbench_behaviour, "json": _harmbench_completion},
        ("Behavior",),
        "CSV of behaviours with the columns Behavior, SemanticCategory and ContextString; or JSON "
        'of judged completions, {name: [{"test_case", "generation", "label" (0 or 1), or human_0, '
        "human_1 and human_2}]}",
    ),
    "wildguard": Format(
        {"jsonl": _wildguard, "csv": _wildguard},
        ("prompt", "response", "response_harm_label"),
        "JSON lines or CSV with prompt, response and response_harm_label (harmful or unharmful)",
    ),
    "wildguard_requests": Format(
        {"jsonl": _wildguard_requests, "csv": _wildguard_requests},
        ("prompt", "prompt_harm_label"),
        "JSON lines or CSV with prompt and prompt_harm_label (harmful or unharmful)",
    ),
    "ailuminate": Format(
        {"csv": _ailuminate},
        ("prompt_text", "hazard"),
        "CSV with the columns release_prompt_id, prompt_text, hazard",
    ),
    "hatecheck": Format(
        {"csv": _hatecheck},
        ("test_case", "label_gold", "functionality"),
        "CSV with the columns functionality, test_case, label_gold (hateful or non-hateful)",
    ),
    "jsonl": Format(
        {"jsonl": _own_line},
        (),
        'JSON lines with "label" ("harmful" or "harmless") and one of "text", "request" and '
        '"messages"; optionally with "answer" and "kind"',
    ),
}
"""Every format by the name that `--benchmark NAME=PATH` takes."""


def read_set(name: str, path: Path) -> BenchmarkSet:
    """Reads a set. Raises DataInvalid with the number of every wrong line and the fix."""
    format_ = FORMATS[name]
    rows: list[BenchmarkRow] = []
    left_out: Counter[LeftOut] = Counter()
    problems: list[str] = []
    content = read_text(path)
    kind = _kind(format_, path)
    for part in _parts(kind, content, format_.columns, path):
        if not isinstance(part, Record):
            problems.append(f"line {part[0]}: {part[1]}")
            continue
        try:
            for item in format_.files[kind](part):
                if isinstance(item, BenchmarkRow):
                    rows.append(item)
                else:
                    left_out[item] += 1
        except RecordInvalid as error:
            problems.append(f"line {part.line}: {error}")
    if not rows and not problems:
        problems = ["line 1: there are no labelled rows"]
    if problems:
        raise DataInvalid(_error_message(path, problems, name))
    return BenchmarkSet(name, str(path), tuple(rows), dict(left_out))


def _kind(format_: Format, path: Path) -> _Files:
    """Returns which of the format's file types a file has, by its name if there is a choice."""
    kinds = list(format_.files)
    extension = suffix(path)
    return next((kind for kind in kinds if kind == extension), kinds[0])


def _parts(kind: _Files, content: str, columns: tuple[str, ...], path: Path) -> Iterator[Part]:
    if kind == "jsonl":
        return json_lines(content)
    if kind == "csv":
        return csv_records(content, columns)
    return _completions(content, path)


def _completions(content: str, path: Path) -> Iterator[Part]:
    """Yields the completions of a HarmBench file in order."""
    try:
        document = json_document(content)
    except RecordInvalid as error:
        raise DataInvalid(_error_message(path, [str(error)], "harmbench")) from error
    for key, completions in document.items():
        line = line_of_key(content, key)
        if not isinstance(completions, list):
            yield line, RecordInvalid(f"{key[:40]!r} is not a list; write a list of completions")
            continue
        for index, item in enumerate(completions):
            if isinstance(item, dict):
                yield Record(line, item)
            else:
                yield line, RecordInvalid(f"item {index} of {key[:40]!r} is not an object")


def _error_message(path: Path, problems: list[str], name: str) -> str:
    more = len(problems) - _MAX_PROBLEMS
    rest = [f"and {more} more lines"] if more > 0 else []
    description = f"{name} is {FORMATS[name].description}."
    return "\n".join([f"{path}:", *problems[:_MAX_PROBLEMS], *rest, description])
