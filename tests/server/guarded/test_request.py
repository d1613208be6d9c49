"""What the guard reads from the request bodies of each API."""

import json
from typing import Any

import pytest

from server.errors import BadRequest
from server.guarded.request import check_moderation_model, parse_body, read_call

SESSION = "0b6f6f4e-5f0c-4c0e-9d3a-0d6c5b1f2a34"
ROUTE = "/v1/chat/completions"
PARTS = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, [("user", "hi")]),
        ({"messages": [{"role": "user", "content": PARTS}]}, [("user", "a\nb")]),
        ({"messages": [{"role": "assistant", "content": None}]}, [("assistant", "")]),
        ({"prompt": "once"}, [("user", "once")]),
        ({"prompt": ["once", "twice"]}, []),
        ({"prompt": [1, 2]}, []),
        ({"instructions": "be", "input": "hi"}, [("system", "be"), ("user", "hi")]),
        ({"input": [{"role": "user", "content": "hi"}]}, [("user", "hi")]),
        ({"system": "be", "messages": [{"role": "user", "content": "hi"}]},
         [("system", "be"), ("user", "hi")]),
        ({"messages": "wrong"}, [("user", "wrong")]),
        ({"messages": [1, None, [{"role": "user"}]]}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_the_conversation_is_read_from_any_api(
    body: dict[str, Any], messages: list[tuple[str, str]]
) -> None:
    call = read_call(ROUTE, {}, body)
    assert [(turn["role"], turn["content"]) for turn in call.messages] == messages


@pytest.mark.parametrize(
    ("body", "user"),
    [
        ({"user": "ada"}, "ada"),
        ({"safety_identifier": "bob", "user": "ada"}, "bob"),
        ({"metadata": {"user_id": "eve"}}, "eve"),
        ({"metadata": {"user_id": f"user_ab12_account__session_{SESSION}"}}, "user_ab12_account_"),
        (
            {"metadata": {"user_id": json.dumps({"session_id": SESSION, "device_id": "d"})}},
            '{"device_id": "d"}',
        ),
        ({"user": '{"session_id": "only"}'}, '{"session_id": "only"}'),
        ({"user": f"_session_{SESSION}"}, f"_session_{SESSION}"),
        ({"user": "12"}, "12"),
        ({"user": 7, "metadata": "x"}, None),
        ({}, None),
    ],
)
def test_the_user_is_found_where_each_api_names_it(body: dict[str, Any], user: str | None) -> None:
    assert read_call(ROUTE, {}, body).user == user


def test_a_caller_may_ask_for_scores_and_blocking() -> None:
    moderation: dict[str, Any] = {"model": "omni-moderation-latest"}
    call = read_call(ROUTE, {}, {"moderation": moderation})
    assert (call.wants_moderation, call.block_input, call.block_output) == (True, False, False)
    moderation["policy"] = {"input": {"mode": "block"}, "output": {"mode": "score"}}
    call = read_call(ROUTE, {}, {"moderation": moderation})
    assert (call.wants_moderation, call.block_input, call.block_output) == (True, True, False)


@pytest.mark.parametrize(
    ("moderation", "param"),
    [
        ({}, "moderation.model"),
        ("on", "moderation"),
        ({"model": "m", "polcy": {}}, "moderation.polcy"),
        ({"model": "m", "policy": {"output": {"mode": "off"}}}, "moderation.policy.output.mode"),
        ({"model": "m", "policy": {"output": {}}}, "moderation.policy.output.mode"),
    ],
)
def test_a_wrong_moderation_field_is_named(moderation: object, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_call(ROUTE, {}, {"moderation": moderation})
    assert caught.value.param == param
    assert param in caught.value.message


NAMED = {"type": "function", "function": {"name": "f"}}
ASKED = {"role": "user", "content": "hello"}
ANSWER = {"type": "message", "role": "assistant", "id": ""}
TOLD, REFUSED = {"type": "output_text", "text": "hi"}, {"type": "refusal", "refusal": "no"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"structured_outputs": False}, "structured_outputs"),
        ({"structured_outputs": "x"}, "structured_outputs"),
        ({"structured_outputs": [{}]}, "structured_outputs"),
        ({"tool_choice": NAMED, "tools": [{}]}, "tools.0.function"),
        ({"tool_choice": NAMED, "tools": [NAMED, {"function": {}}]}, "tools.1.function.name"),
        ({"input": [ASKED, {**ANSWER, "content": []}]}, "input.1.content"),
        ({"input": [ASKED, {**ANSWER, "content": [REFUSED]}]}, "input.1.content"),
    ],
)
def test_requests_that_vllm_would_fail_on_are_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_call(ROUTE, {}, body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": None, "tools": None},
        {"input": [ASKED, {**ANSWER, "content": [TOLD, REFUSED]}]},
        {"input": [ASKED, {"role": "assistant", "content": []}]},
        {"structured_outputs": {"regex": "a"}},
        {
            "tools": [{"name": "f", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "f"},
        },
        {"tools": [{"type": "custom"}], "tool_choice": {"type": "custom", "name": "f"}},
        {"tools": [NAMED], "tool_choice": NAMED},
        {"tools": 5, "tool_choice": "auto"},
    ],
)
def test_errors_that_vllm_reports_are_left_to_it(body: dict[str, Any]) -> None:
    assert read_call(ROUTE, {}, body).route == ROUTE


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"3", b'"x"', b'{"a": "\xff"}', b"[" * 100_000, b"1" * 5000),
        *(b'{"stop": ["\\ud800"]}', b'{"\\uDFFF": 1}', b'{"a": "\\ude00\\ud83d"}'),
        *(b'{"a": "\xed\xa0\x80"}', '{"a": "b"}'.encode("utf-16")),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_body(body)


def test_whole_characters_are_read_however_they_are_written() -> None:
    body = b'\xef\xbb\xbf{"a": "\\ud83d\\ude00 \xf0\x9f\x98\x80 \\u00e9 \\\\ud800"}'
    assert parse_body(body) == {"a": "\U0001f600 \U0001f600 \u00e9 \\ud800"}


def test_openais_model_names_mean_the_served_model() -> None:
    for name in ("omni-moderation-latest", "text-moderation-latest", "mine"):
        check_moderation_model(name, ["mine"], "model")
    with pytest.raises(BadRequest, match="'gpt-9'.*mine"):
        check_moderation_model("gpt-9", ["mine"], "model")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"text": {"format": {"type": "json_schema"}}}, True),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"structured_outputs": {"json": {"type": "object"}}}, True),
        ({"structured_outputs": {"regex": "a+"}}, False),
        ({"response_format": "json_object", "text": 3}, False),
    ],
)
def test_whether_json_is_wanted(body: dict[str, Any], expected: bool) -> None:
    assert read_call("/v1/chat/completions", {}, body).wants_json is expected
