"""The practice model's tokenizer: byte-level BPE over the world's own sentences.

Lossless: any Unicode text is tokenised and comes back unchanged. Made from the seed alone, so that
a rebuilt tokenizer equals the committed one. Owns no training text (corpus.py).
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from guard import prompts
from guard.verdict import CATEGORIES
from refine.practice.corpus import examples
from refine.practice.recipe import (
    CONTEXT_LENGTH,
    IM_END,
    PAD,
    SHAPE,
    SPECIAL_TOKENS,
    TRAINING,
)

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()

_EXAMPLES = 6_000
_PROMPTS = (
    prompts.INDUCE,
    prompts.GUIDED_ANALYSIS,
    prompts.CRITIQUE,
    prompts.CATEGORY,
    prompts.REMINDER,
    prompts.REVISE,
    prompts.PARAPHRASE,
    prompts.TEXT,
    " ".join((*prompts.YES_WORDS, *prompts.NO_WORDS)),
    "\n".join((*prompts.YES_WORDS, *prompts.NO_WORDS, *CATEGORIES)),
    "system\nuser\nassistant\ntool\n",
)
_PROMPT_WEIGHT = 50
"""How often each prompt is repeated, so that its words become single tokens."""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(
            vocab_size=SHAPE.vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=PAD,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _texts() -> list[str]:
    spoken = [
        turn.content
        for example in examples(_EXAMPLES, TRAINING.seed)
        if not example.outside
        for turn in example.turns
    ]
    return [*spoken, *_PROMPTS * _PROMPT_WEIGHT]
