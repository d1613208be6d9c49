"""The practice model outside the server, as the refine loop's Model: base and adapters in this
process. Owns the choice of the adapter. Does not run the model (reader.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guard.prompts import REMINDER
from refine.practice.reader import Reader
from refine.practice.recipe import MODEL_DIR
from refine.served import GREEDY, Adapter, Conversation, GenerationParams


class ReaderModel:
    """A refine.served.Model on a Reader. active: the version that adapter="active" means, or None.

    adapters: PEFT directories by version, loaded when first used.
    """

    def __init__(
        self,
        path: Path = MODEL_DIR,
        adapters: Mapping[int, Path] | None = None,
        active: int | None = None,
    ) -> None:
        self._base = Reader.load(path)
        self._path = path
        self._paths = dict(adapters or {})
        self._loaded: dict[int, Reader] = {}
        self.active = active

    async def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        adapter: Adapter,
        params: GenerationParams = GREEDY,
    ) -> list[str]:
        """See Model. A conversation that ends in an assistant's turn gets the rest of that turn."""
        conversations_ = _with_reminder(conversations, params.reminder)
        return self._reader(adapter).answers(
            conversations_, params.max_tokens, params.temperature, params.seed
        )

    async def harm(
        self, conversations: Sequence[Conversation], *, adapter: Adapter, reminder: bool = False
    ) -> list[float]:
        """See Model."""
        return self._reader(adapter).harm(_with_reminder(conversations, reminder))

    async def text_harm(self, texts: Sequence[str], *, adapter: Adapter) -> list[float]:
        """See Model."""
        return self._reader(adapter).text_harm(texts)

    async def lengths(self, conversations: Sequence[Conversation]) -> list[int | None]:
        """See Model."""
        return [self._base.length(messages) for messages in _with_reminder(conversations)]

    def _reader(self, adapter: Adapter) -> Reader:
        version = self.active if adapter == "active" else adapter
        if version is None or version == "base":
            return self._base
        number = int(version)
        if number not in self._loaded:
            self._loaded[number] = self._with_adapter(self._paths[number])
        return self._loaded[number]

    def _with_adapter(self, path: Path) -> Reader:
        """Merges the adapter into a copy of the weights, so that it costs nothing per token."""
        from peft import PeftModel

        reader = Reader.load(self._path)
        merged: Any = PeftModel.from_pretrained(reader.model.float(), str(path))
        return replace(reader, model=merged.merge_and_unload().eval())


def _with_reminder(
    conversations: Sequence[Conversation], reminder: bool = False
) -> list[list[dict[str, str]]]:
    # The practice chat template has no system turn of its own that this would replace.
    system = [{"role": "system", "content": REMINDER}] if reminder else []
    return [[*system, *(dict(message) for message in messages)] for messages in conversations]
