"""/v1/models/{model} and /ready."""

from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from guard.errors import StoreUnavailable
from tests.server.face import Face


class Card(BaseModel):
    """As vLLM's."""

    id: str
    object: str = "model"


class Models:
    """vLLM's list of models."""

    async def show_available_models(self) -> Any:
        return SimpleNamespace(data=[Card(id="smollm2"), Card(id="org/name")])


async def test_one_model_is_found_by_its_name(face: Face) -> None:
    face.app.state.openai_serving_models = Models()
    async with face.client() as client:
        for name in ("smollm2", "org/name"):
            response = await client.get(f"/v1/models/{name}")
            assert response.json() == {"id": name, "object": "model"}
        missing = await client.get("/v1/models/gpt-4o")
    assert missing.status_code == 404
    error = missing.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "smollm2, org/name" in error["message"]


async def test_readiness_follows_the_first_critique_and_the_database(face: Face) -> None:
    state = face.app.state.setback
    async with face.client() as client:
        state.ready = False
        assert (await client.get("/ready")).json()["error"]["code"] == "not_ready"
        state.ready = True
        assert (await client.get("/ready")).status_code == 200
        await face.reviews.close()
        state.reviews = Failing()
        failing = await client.get("/ready")
    assert failing.status_code == 503
    assert failing.json()["error"]["code"] == "store_unavailable"


class Failing:
    """A review store whose database is gone."""

    async def check(self) -> None:
        raise StoreUnavailable("postgresql://10.0.0.7 does not answer")
