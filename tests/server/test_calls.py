"""What the guard reads from request bodies of each API."""

from typing import Any

import pytest

from server.calls import check_moderation_model, parse_body, read_call
from server.errors import BadRequest

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


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'"x"', b'{"a": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_body(body)


def test_openais_model_names_mean_the_served_model() -> None:
    for name in ("omni-moderation-latest", "text-moderation-latest", "mine"):
        check_moderation_model(name, ["mine"], "model")
    with pytest.raises(BadRequest, match="'gpt-9'.*mine"):
        check_moderation_model("gpt-9", ["mine"], "model")
