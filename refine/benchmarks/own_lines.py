"""One line of a user's own benchmark set. Owns its fields. Does not read files (records.py).

    {"text": "...", "label": "harmful"}
    {"request": "How do I ...?", "label": "harmless", "kind": "everyday"}
    {"messages": [{"role": "user", "content": "..."}], "answer": "...", "label": "harmful"}

text is judged alone. request is one user turn, messages a conversation up to its last user turn; if
there is an answer, the answer is judged. kind is a group for the report. category, of a harmful
line, is the kind of harm: one of OpenAI's 13 names, such as "self-harm/intent". criterion is the
name of a policy's criterion that applies to the line, harmful or not.
"""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator

from guard.criteria import NAME
from guard.verdict import CATEGORIES
from refine.benchmarks.records import Record, RecordInvalid
from refine.benchmarks.rows import BenchmarkRow, answer, request, text

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: _Text


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    text: _Text | None = None
    request: _Text | None = None
    messages: Annotated[tuple[_Turn, ...], Field(min_length=1)] | None = None
    answer: _Text | None = None
    label: Literal["harmful", "harmless"]
    kind: str = ""
    category: str = ""
    criterion: Annotated[str, StringConstraints(pattern=NAME)] = ""

    @validator(mode="after")
    def _has_one_subject(self) -> Self:
        subjects = [self.text, self.request, self.messages]
        if len(subjects) - subjects.count(None) != 1:
            raise ValueError('give exactly one of "text", "request" and "messages"')
        if self.text is not None and self.answer is not None:
            raise ValueError('"answer" needs "request" or "messages", not "text"')
        if self.category and (self.label != "harmful" or self.category not in CATEGORIES):
            raise ValueError(f'"category" is for harmful lines, and one of {", ".join(CATEGORIES)}')
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError('"messages" must end with the user; put the reply in "answer"')
        return self


def own_line(record: Record) -> BenchmarkRow:
    """Returns a line's row. Raises RecordInvalid, which does not quote the text."""
    try:
        line = _Line.model_validate(record.fields)
    except ValidationError as error:
        raise RecordInvalid(_explain(error)) from error
    return replace(_row(record.line, line), category=line.category, criterion=line.criterion)


def _row(number: int, line: _Line) -> BenchmarkRow:
    harmful = line.label == "harmful"
    if line.text is not None:
        return text(number, line.text, harmful=harmful, group=line.kind)
    turns = [turn.model_dump() for turn in line.messages or ()]
    conversation = line.request if line.request is not None else turns
    if line.answer is not None:
        return answer(number, conversation, line.answer, harmful=harmful, group=line.kind)
    if line.request is not None:
        return request(number, line.request, harmful=harmful, group=line.kind)
    return BenchmarkRow(number, "request", tuple(turns), harmful, line.kind)


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)
