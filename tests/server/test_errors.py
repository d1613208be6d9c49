"""Every guard error has a status and OpenAI's shape."""

import json

import pytest

from guard import errors
from guard.errors import GuardError
from server.errors import STATUS, guard_error_response

ALL = [value for value in vars(errors).values() if isinstance(value, type)]
KINDS = [kind for kind in ALL if issubclass(kind, GuardError) and kind is not GuardError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_guard_error_is_mapped(kind: type[GuardError]) -> None:
    response = guard_error_response(kind("what is wrong"))
    assert response.status_code == STATUS[kind]
    error = json.loads(bytes(response.body))["error"]
    assert error["message"] == "what is wrong"
    assert error["code"] == kind.code
    assert error["type"] == ("server_error" if STATUS[kind] >= 500 else "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_the_field_to_change_is_named() -> None:
    error = guard_error_response(errors.Unsupported("no", param="use_beam_search"))
    assert json.loads(bytes(error.body))["error"]["param"] == "use_beam_search"
    blocked = guard_error_response(errors.InputBlocked("flagged"))
    assert json.loads(bytes(blocked.body))["error"] == {
        "message": "flagged",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "content_filter",
    }
