"""The formats of public benchmark sets, and of JSON lines of the user's own. Owns which columns
each has and what they mean; files and line numbers are records.py's.

A set is read as it is published, and refused with every wrong line. What has no label or no text to
judge is left out and counted.
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
"""Why a record, or a part of it, is not used."""
_Reader = Callable[[Record], Iterator[BenchmarkRow | LeftOut]]
_Files = Literal["jsonl", "csv", "json"]
_MOST_PROBLEMS = 10
_OPENAI_LABELS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
_HUMAN_LABELS = ("human_0", "human_1", "human_2")
NO_LABEL, NO_ANSWER = "no label", "no answer"


@dataclass(frozen=True)
class Format:
    """How one set is published.

    files: each kind of file it comes as, and what is read from such a file. columns: those that a
    CSV file must have. description: for messages.
    """

    files: dict[_Files, _Reader]
    columns: tuple[str, ...]
    description: str


def _openai_moderation(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    known = [name for name in _OPENAI_LABELS if record.fields.get(name) is not None]
    content = record.text("prompt")
    if known:
        labels = [record.label(name, "1", "0") for name in known]
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
    yield _answered(record, "response", harmful)


def _saferlhf(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    for number in (0, 1):
        harmful = record.label(f"is_response_{number}_safe", "false", "true")
        yield _answered(record, f"response_{number}", harmful)


def _answered(record: Record, name: str, harmful: bool) -> BenchmarkRow | LeftOut:
    prompt = record.text("prompt")
    if not record.has(name):
        return NO_ANSWER
    return answer(record.line, prompt, record.text(name), harmful=harmful)


def _harmbench_behaviour(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
    prompt = record.text("Behavior")
    if record.has("ContextString"):
        # As HarmBench's own direct requests join the two.
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
        yield _answered(record, "response", harmful)
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


def _own(record: Record) -> Iterator[BenchmarkRow | LeftOut]:
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
        {"jsonl": _own},
        (),
        'JSON lines with "label" ("harmful" or "harmless") and one of "text", "request" and '
        '"messages"; if you like, with "answer" and "kind"',
    ),
}
"""Every format by the name that `--benchmark NAME=PATH` takes."""


def read_set(name: str, path: Path) -> BenchmarkSet:
    """The set in a file. Raises DataInvalid with the number of every wrong line and the fix."""
    form = FORMATS[name]
    rows: list[BenchmarkRow] = []
    left_out: Counter[LeftOut] = Counter()
    problems: list[str] = []
    content = read_text(path)
    kind = _kind(form, path)
    for part in _parts(kind, content, form.columns, path):
        if not isinstance(part, Record):
            problems.append(f"line {part[0]}: {part[1]}")
            continue
        try:
            for item in form.files[kind](part):
                if isinstance(item, BenchmarkRow):
                    rows.append(item)
                else:
                    left_out[item] += 1
        except RecordInvalid as error:
            problems.append(f"line {part.line}: {error}")
    if not rows and not problems:
        problems = ["line 1: there is no labelled row in it"]
    if problems:
        raise DataInvalid(_refusal(path, problems, name))
    return BenchmarkSet(name, str(path), tuple(rows), dict(left_out))


def _kind(form: Format, path: Path) -> _Files:
    """Which of the format's kinds of file it is: by its name, if there is a choice."""
    kinds = list(form.files)
    named = suffix(path)
    return next((kind for kind in kinds if kind == named), kinds[0])


def _parts(kind: _Files, content: str, columns: tuple[str, ...], path: Path) -> Iterator[Part]:
    if kind == "jsonl":
        return json_lines(content)
    if kind == "csv":
        return csv_records(content, columns)
    return _completions(content, path)


def _completions(content: str, path: Path) -> Iterator[Part]:
    """The completions of a HarmBench file, in its order."""
    try:
        document = json_document(content)
    except RecordInvalid as error:
        raise DataInvalid(_refusal(path, [str(error)], "harmbench")) from error
    for key, listed in document.items():
        line = line_of_key(content, key)
        if not isinstance(listed, list):
            yield line, RecordInvalid(f"{key[:40]!r} holds no list; write a list of completions")
            continue
        for place, item in enumerate(listed):
            if isinstance(item, dict):
                yield Record(line, item)
            else:
                yield line, RecordInvalid(f"item {place} of {key[:40]!r} is not an object")


def _refusal(path: Path, problems: list[str], name: str) -> str:
    more = len(problems) - _MOST_PROBLEMS
    rest = [f"and {more} more lines"] if more > 0 else []
    shape = f"{name} is {FORMATS[name].description}."
    return "\n".join([f"{path}:", *problems[:_MOST_PROBLEMS], *rest, shape])
