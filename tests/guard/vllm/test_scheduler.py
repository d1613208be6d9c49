"""The guard's schedulers in a real engine on the practice model: a session's critique equals a
separate request's, answers are unchanged, and nothing stays behind."""

import gc
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm import EngineArgs
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from guard import prompts
from guard.labels import LabelSet, harm_labels
from guard.template import ChatFormat
from guard.vllm.scheduler import GuardedScheduler
from guard.vllm.session import (
    ASYNC_SCHEDULER,
    SCHEDULER,
    CritiquePlan,
    attach_plan,
    take_label_logprobs,
)
from refine.practice.recipe import MODEL_DIR
from refine.practice.world import Kind, requests
from tests.guard.vllm.asynchronous import schedule_asynchronously

SETTINGS: dict[str, Any] = {
    "model": str(MODEL_DIR),
    "enforce_eager": True,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 * 1024**2,
}
EVERY = 8
TOLERANCE = 0.02


class Session:
    """An in-process engine with the guard's scheduler, and the guard's plan for it."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
        self.chat_format = ChatFormat(tokenizer, None)
        self.labels: LabelSet = harm_labels(tokenizer)
        self.question = self.chat_format.question_after_answer(
            prompts.CRITIQUE.format(subject="answer")
        )
        self.end: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._count = 0

    @property
    def scheduler(self) -> GuardedScheduler:
        core: Any = self.engine.engine_core
        scheduler = core.engine_core.scheduler
        assert isinstance(scheduler, GuardedScheduler)
        return scheduler

    @property
    def is_asynchronous(self) -> bool:
        """Whether a step is scheduled before the last one's tokens are known."""
        core: Any = self.engine.engine_core
        return core.engine_core.batch_queue is not None

    @property
    def plan(self) -> CritiquePlan:
        return CritiquePlan(EVERY, self.question, [self.end], self.labels.token_ids)

    def prompts(self, kind: Kind, count: int) -> list[list[int]]:
        chosen = requests(kind, "held-out", count)
        return [
            self._tokenizer.apply_chat_template(
                list(request.messages), add_generation_prompt=True, return_dict=False
            )
            for request in chosen
        ]

    def add(
        self,
        prompt: Sequence[int],
        plan: CritiquePlan | None,
        *,
        max_tokens: int = 60,
        **options: Any,
    ) -> str:
        self._count += 1
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.DELTA,
            **options,
        )
        name = f"request-{self._count}"
        self.engine.add_request(name, tokens_input(list(prompt)), attach_plan(params, plan))
        return name

    def finish(self) -> dict[str, list[RequestOutput]]:
        """Runs the engine until it is idle. Returns the outputs by request, in order."""
        outputs: dict[str, list[RequestOutput]] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                assert isinstance(output, RequestOutput)
                outputs.setdefault(output.request_id, []).append(output)
        return outputs

    def alone(self, prompt: Sequence[int], plan: CritiquePlan | None, **options: Any) -> "Answer":
        name = self.add(prompt, plan, **options)
        return Answer(self.finish()[name])

    def read(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Reads P(harmful) by a separate request."""
        tokens, labels = [*prompt, *answer, *self.question], self.labels.token_ids
        answered = self.alone(tokens, None, max_tokens=1, logprob_token_ids=labels)
        (logprobs,) = answered.logprobs
        read = {token: logprobs[token].logprob for token in self.labels.token_ids}
        return self.labels.probabilities(read)["yes"]

    def harm(self, read: dict[int, float] | None) -> float:
        assert read is not None
        return self.labels.probabilities(read)["yes"]


class Answer:
    """The outputs of one request, joined."""

    def __init__(self, outputs: Sequence[RequestOutput]) -> None:
        self.sizes = [len(output.outputs[0].token_ids) for output in outputs]
        self.token_ids = [t for output in outputs for t in output.outputs[0].token_ids]
        self.text = "".join(output.outputs[0].text for output in outputs)
        logprobs: Iterator[Any] = (
            p for output in outputs for p in output.outputs[0].logprobs or ()
        )
        self.logprobs = list(logprobs)
        self.finish_reason = outputs[-1].outputs[0].finish_reason
        self.reads = [take_label_logprobs(output) for output in outputs]


@pytest.fixture(scope="module", params=[SCHEDULER, ASYNC_SCHEDULER])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # vLLM walks through all of torch's names, also those that warn.
        warnings.simplefilter("ignore", FutureWarning)
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_PLUGINS", "setback_cpu")
        if request.param == ASYNC_SCHEDULER:
            schedule_asynchronously(patch)
        arguments = EngineArgs(**SETTINGS, scheduler_cls=request.param)
        session = Session(LLMEngine.from_engine_args(arguments))
        assert session.is_asynchronous == (request.param == ASYNC_SCHEDULER)
        yield session
        del session
        gc.collect()
        cleanup_dist_env_and_memory()


def nothing_left(session: Session) -> bool:
    scheduler = session.scheduler
    used = scheduler.kv_cache_manager.usage
    return not scheduler._states and not scheduler.requests and used == 0


@pytest.mark.parametrize("kind", [Kind.EVERYDAY, Kind.HARMFUL])
@pytest.mark.parametrize("max_tokens", [20, 200])
def test_the_session_reads_what_a_request_of_its_own_would(
    session: Session, kind: Kind, max_tokens: int
) -> None:
    """Whether the answer ended naturally or by its length."""
    for prompt in session.prompts(kind, 5):
        answer = session.alone(prompt, session.plan, max_tokens=max_tokens)
        token_ids = answer.token_ids
        token_ids = token_ids[:-1] if token_ids[-1] == session.end else token_ids
        expected = session.read(prompt, token_ids)
        assert session.harm(answer.reads[-1]) == pytest.approx(expected, abs=TOLERANCE)
        assert not any(answer.reads[:-1])
    assert nothing_left(session)


def test_many_at_once_are_answered_and_read_as_alone(session: Session) -> None:
    inputs = [*session.prompts(Kind.EVERYDAY, 8), *session.prompts(Kind.HARMFUL, 8)]
    names = [session.add(prompt, session.plan) for prompt in inputs]
    outputs = session.finish()
    for name, prompt in zip(names, inputs, strict=True):
        together, alone = Answer(outputs[name]), session.alone(prompt, session.plan)
        # Batches of another shape may differ in the last bit, and then in a word.
        if together.token_ids == alone.token_ids:
            assert session.harm(together.reads[-1]) == pytest.approx(
                session.harm(alone.reads[-1]), abs=TOLERANCE
            )
    assert nothing_left(session)


def test_answers_are_as_without_the_guard(session: Session) -> None:
    for prompt in session.prompts(Kind.EVERYDAY, 5):
        bare = session.alone(prompt, None, logprobs=2)
        guarded = session.alone(prompt, session.plan, logprobs=2)
        assert (guarded.token_ids, guarded.text) == (bare.token_ids, bare.text)
        assert guarded.finish_reason == bare.finish_reason
        assert guarded.logprobs == bare.logprobs


def test_log_probabilities_survive_next_to_those_that_ask_for_more(session: Session) -> None:
    """And next to critiques that end while other requests are in the middle of a group."""
    inputs = session.prompts(Kind.EVERYDAY, 6)
    counts = [2, 5, 0, 3, 1, 4]
    names = [
        session.add(prompt, session.plan, logprobs=count, max_tokens=17 + 3 * count)
        for prompt, count in zip(inputs, counts, strict=True)
    ]
    outputs = session.finish()
    for name, prompt, count in zip(names, inputs, counts, strict=True):
        together = Answer(outputs[name])
        alone = session.alone(prompt, None, logprobs=count, max_tokens=17 + 3 * count)
        assert len(together.logprobs) == len(together.token_ids)
        for mine, theirs in zip(together.logprobs, alone.logprobs, strict=False):
            if list(mine) != list(theirs):
                break  # Another word was as likely, and all after it differs.
            for token, logprob in mine.items():
                assert logprob.logprob == pytest.approx(theirs[token].logprob, abs=0.1)
        else:
            assert together.text == alone.text


def test_tokens_come_in_groups_after_the_first(session: Session) -> None:
    (prompt,) = session.prompts(Kind.EVERYDAY, 1)
    answer = session.alone(prompt, session.plan, max_tokens=20, ignore_eos=True)
    assert answer.sizes == [1, EVERY - 1, EVERY, 4]
    assert session.alone(prompt, None, max_tokens=3, ignore_eos=True).sizes == [1, 1, 1]


def test_without_a_question_there_is_no_critique(session: Session) -> None:
    (prompt,) = session.prompts(Kind.EVERYDAY, 1)
    answer = session.alone(prompt, CritiquePlan(EVERY), max_tokens=20)
    assert not any(answer.reads)
    assert nothing_left(session)


def test_an_answer_that_leaves_no_room_comes_without_a_critique(session: Session) -> None:
    (prompt,) = session.prompts(Kind.EVERYDAY, 1)
    room = session.engine.model_config.max_model_len - len(prompt)
    answer = session.alone(prompt, session.plan, max_tokens=room, ignore_eos=True)
    assert len(answer.token_ids) == room
    assert answer.finish_reason == "length"
    assert not any(answer.reads)
    assert nothing_left(session)


@pytest.mark.parametrize("steps", [1, 5, 12, 13])
def test_an_aborted_request_leaves_nothing_behind(session: Session, steps: int) -> None:
    """Also in the step in which the critique runs."""
    (prompt,) = session.prompts(Kind.EVERYDAY, 1)
    name = session.add(prompt, session.plan, max_tokens=12, ignore_eos=True)
    for _ in range(steps):
        session.engine.step()
    session.engine.abort_request([name])
    session.finish()
    assert nothing_left(session)


def test_critiques_survive_when_the_cache_is_too_small_for_all(session: Session) -> None:
    """Sessions are preempted and recomputed, and still read the same labels."""
    manager = session.scheduler.kv_cache_manager.block_pool
    taken = manager.get_new_blocks(manager.get_num_free_blocks() - 24)
    try:
        inputs = session.prompts(Kind.EVERYDAY, 12)
        names = [session.add(p, session.plan, max_tokens=80, ignore_eos=True) for p in inputs]
        outputs = session.finish()
    finally:
        manager.free_blocks(taken)
    for name, prompt in zip(names, inputs, strict=True):
        answer = Answer(outputs[name])
        assert len(answer.token_ids) == 80
        expected = session.read(prompt, answer.token_ids)
        assert session.harm(answer.reads[-1]) == pytest.approx(expected, abs=TOLERANCE)


def test_an_answer_whose_last_token_comes_after_its_cache_was_taken_ends_without_a_critique(
    session: Session,
) -> None:
    """As when another request needs the blocks. The server then asks for the critique itself."""
    if not session.is_asynchronous:
        pytest.skip("no step is under way when a request is preempted")
    (prompt,) = session.prompts(Kind.EVERYDAY, 1)
    name = session.add(prompt, session.plan, max_tokens=12, ignore_eos=True)
    scheduler = session.scheduler
    outputs: list[Any] = []
    session.engine.step()
    (request,) = scheduler.requests.values()
    while request.num_output_tokens < 11 or not request.num_in_flight_tokens:
        outputs += session.engine.step()
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    outputs += session.finish()[name]
    answer = Answer(outputs)
    assert (len(answer.token_ids), answer.finish_reason) == (12, "length")
    assert not any(answer.reads)
    assert nothing_left(session)


def test_a_caller_cannot_ask_the_scheduler() -> None:
    slipped = SamplingParams(extra_args={"setback": {"group_size": 1_000_000}, "other": 1})
    assert attach_plan(slipped, None).extra_args == {"other": 1}
    extra_args = attach_plan(slipped, CritiquePlan(EVERY)).extra_args
    assert extra_args is not None
    assert extra_args["setback"]["group_size"] == EVERY
    assert extra_args["other"] == 1
