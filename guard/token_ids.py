"""The token ids that the guard needs of a prompt, an engine and a tokenizer. Owns which prompts
have none, and so cannot be guarded.
"""

from collections.abc import Iterator
from typing import Any

from guard.errors import Unsupported


def prompt_ids(prompt: Any) -> list[int]:
    """Returns the prompt's token ids. Raises Unsupported when no critique can follow the prompt."""
    if isinstance(prompt, dict) and prompt.get("type") in ("token", "multimodal"):
        return list(prompt["prompt_token_ids"])
    raise Unsupported(
        "Only prompts of text or images can be guarded; send messages or a text prompt.",
        param="prompt_embeds",
    )


def kept_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that are marks rather than text, such as the end of reasoning."""
    return frozenset(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())


def stop_ids(engine: Any, tokenizer: Any) -> Iterator[int]:
    """Yields the tokens that end an answer without being part of it."""
    yield tokenizer.eos_token_id
    configured = engine.model_config.try_get_generation_config().get("eos_token_id") or ()
    yield from configured if isinstance(configured, list) else (configured,) if configured else ()
