"""The conversation of each API: all that the model reads, and the turn that is open."""

from typing import Any

import pytest

from server.guarded.conversation import conversation

ASKED = {"role": "user", "content": "First."}
ANSWERED = {"role": "assistant", "content": "An answer."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "It rains."}
CHAT = [ASKED, ANSWERED, {"role": "user", "content": "Second."}, CALL, RESULT]

TOOL_USE = {"type": "tool_use", "id": "1", "name": "find", "input": {"q": "x"}}
TOOL_RESULT = {
    "type": "tool_result",
    "tool_use_id": "1",
    "content": [{"type": "text", "text": "It rains."}],
}
DOCUMENT = {"type": "document", "title": "Notes", "source": {"type": "text", "data": "A page."}}
ANTHROPIC = [
    ASKED,
    ANSWERED,
    {"role": "user", "content": [DOCUMENT, {"type": "text", "text": "Second."}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, TOOL_USE]},
    {"role": "user", "content": [TOOL_RESULT]},
]
RESPONSES = [
    ASKED,
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "An answer."}],
    },
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Second."}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "1", "name": "find", "arguments": '{"q": "x"}'},
    {"type": "function_call_output", "call_id": "1", "output": "It rains."},
]


@pytest.mark.parametrize(
    ("body", "messages", "open_turn"),
    [
        (
            {"messages": CHAT},
            ["First.", "An answer.", "Second.", 'find({"q": "x"})', "It rains."],
            'Second.\n\nfind({"q": "x"})\n\nIt rains.',
        ),
        (
            {"messages": ANTHROPIC, "system": "Be brief."},
            [
                *("Be brief.", "First.", "An answer."),
                *("Notes\nA page.\nSecond.", 'Hm.\nfind({"q": "x"})', "It rains."),
            ],
            'Notes\nA page.\nSecond.\n\nHm.\nfind({"q": "x"})\n\nIt rains.',
        ),
        (
            {"input": RESPONSES},
            ["First.", "An answer.", "Second.", "Hm.", 'find({"q": "x"})', "It rains."],
            'Second.\n\nHm.\n\nfind({"q": "x"})\n\nIt rains.',
        ),
    ],
    ids=["chat", "messages", "responses"],
)
def test_tool_calls_results_and_reasoning_are_read(
    body: dict[str, Any], messages: list[str], open_turn: str
) -> None:
    read = conversation(body)
    assert [message["content"] for message in read.messages] == messages
    assert read.open_turn == open_turn


@pytest.mark.parametrize(
    ("body", "results"),
    [
        ({"messages": CHAT}, "It rains."),
        ({"messages": ANTHROPIC}, "Notes\nA page.\n\nIt rains."),
        ({"input": RESPONSES}, "It rains."),
        ({"input": [{"type": "mcp_call", "name": "find", "output": "It rains."}]}, "It rains."),
        ({"messages": [*CHAT, ANSWERED, ASKED]}, ""),
        ({"messages": [ASKED], "documents": [{"text": "A page."}]}, "A page."),
        ({"prompt": "First."}, ""),
    ],
)
def test_what_tools_and_documents_say_since_the_last_answer(
    body: dict[str, Any], results: str
) -> None:
    assert conversation(body).tool_results == results


def test_two_user_turns_in_a_row_are_one_request() -> None:
    later = {"role": "user", "content": "Explain the above."}
    system = {"role": "system", "content": "Be brief."}
    assert conversation({"messages": [system, ASKED, later]}).open_turn == (
        "First.\n\nExplain the above."
    )
    assert conversation({"messages": [ASKED, ANSWERED, later]}).open_turn == "Explain the above."


def test_a_beginning_to_go_on_with_belongs_to_the_open_turn() -> None:
    begun = {"role": "assistant", "content": "Sure, first you"}
    assert conversation({"messages": [ASKED, begun]}).open_turn == "First.\n\nSure, first you"


def test_documents_belong_to_the_open_turn() -> None:
    """They are in every prompt, whatever turn it has reached."""
    documents = [{"title": "Notes", "text": "A page."}, {"text": "Another."}]
    read = conversation({"messages": [ASKED, ANSWERED, ASKED], "documents": documents})
    assert read.open_turn == "Notes\nA page.\n\nAnother.\n\nFirst."
    assert [message["content"] for message in read.messages][:2] == ["Notes\nA page.", "Another."]
    assert conversation({"messages": [ASKED], "documents": "none"}).open_turn == "First."


@pytest.mark.parametrize(
    "item",
    [
        {"role": "assistant", "tool_calls": "x", "content": 3},
        {"role": "assistant", "tool_calls": [{"function": 3}, None]},
        {"role": "user", "content": [None, 3, {}, {"type": "tool_use"}, {"type": "document"}]},
        {"type": "reasoning", "summary": None},
        {"type": "function_call"},
        {"type": 7, "output": {}},
    ],
)
def test_what_vllm_will_refuse_disturbs_nothing(item: dict[str, Any]) -> None:
    for key in ("messages", "input"):
        assert len(conversation({key: [ASKED, item]}).messages) == 2
