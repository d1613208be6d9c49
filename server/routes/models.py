"""GET /v1/models/{model}: one of the models that /v1/models lists, as OpenAI's API has it. Owns
this route; vLLM has the list alone.
"""

from typing import Any

from fastapi import APIRouter, Request

from server.errors import REFUSALS, BadRequest

router = APIRouter()


@router.get("/v1/models/{model:path}", responses=REFUSALS)
async def get_model(model: str, request: Request) -> dict[str, Any]:
    """Returns the model's card, or 404."""
    models = await request.app.state.openai_serving_models.show_available_models()
    for card in models.data:
        if card.id == model:
            fields: dict[str, Any] = card.model_dump()
            return fields
    known = ", ".join(card.id for card in models.data)
    raise BadRequest(
        f"The model {model!r} does not exist; use one of: {known}.", "model", "model_not_found", 404
    )
