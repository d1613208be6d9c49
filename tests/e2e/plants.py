"""What the practice model is asked for in JSON and by a tool: the name of a plant. Owns the shapes
in which it is asked, and what makes a model that knows no JSON end it.
"""

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from transformers import AutoTokenizer

from refine.practice.recipe import MODEL_DIR

PLANTS = [{"plant": "fern"}, {"plant": "rose"}]


class Answer(BaseModel):
    """The answer, or the arguments of the tool."""

    model_config = ConfigDict(extra="forbid")
    plant: Literal["fern", "rose"]


JSON_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "Answer", "schema": Answer.model_json_schema()},
}
FUNCTION: Any = {"name": "look_up", "strict": True, "parameters": Answer.model_json_schema()}


@cache
def compact_json() -> dict[str, Any]:
    """Returns fields that keep the practice model from filling up JSON with white space."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    texts = {token: str(tokenizer.decode([token])) for token in range(len(tokenizer))}
    blank = [token for token, text in texts.items() if text and not text.strip()]
    return {"logit_bias": {str(token): -100 for token in blank}}
