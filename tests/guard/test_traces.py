"""Spans cover draft, critique, revision and store, streamed or not, and contain no text."""

from collections import Counter
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.sampling_params import RequestOutputKind

from guard import prompts
from guard.call import StreamMode
from guard.errors import CriticUnavailable, StoreUnavailable
from guard.scripted import Script
from tests.scripted import Bench

MakeBench = Callable[..., Bench]

SECRET = "First take the forbidden key, then break the quiet door."
SAFE = "I would rather help you knock at the door and ask."
WAYS = [
    (RequestOutputKind.FINAL_ONLY, StreamMode.BUFFER),
    (RequestOutputKind.DELTA, StreamMode.WINDOW),
]
REVISES = Script(
    answers=lambda prompt: (SAFE if prompts.REVISE in prompt else SECRET,),
    harm=lambda prompt: 0.9 if "forbidden" in prompt.rpartition("Is the answer")[0] else 0.1,
)


@pytest.mark.parametrize(("kind", "stream"), WAYS)
async def test_every_step_of_a_flagged_answer_has_a_span(
    make_bench: MakeBench,
    spans: InMemorySpanExporter,
    kind: RequestOutputKind,
    stream: StreamMode,
) -> None:
    bench = make_bench(REVISES, stream=stream, windows=(64, 1.0, 64))
    await bench.ask(kind=kind)
    ended = spans.get_finished_spans()
    assert Counter(span.name for span in ended) == Counter(
        ["draft", "critique", "critique", "revision", "store"]
    )
    attributes = {
        (span.name, (span.attributes or {}).get("setback.of")): dict(span.attributes or {})
        for span in ended
    }
    assert attributes["draft", None] == {"setback.request_id": "req-1", "setback.adapter": "base"}
    assert attributes["critique", "answer"] == {
        "setback.request_id": "req-1",
        "setback.adapter": "base",
        "setback.of": "answer",
        "setback.harm": pytest.approx(0.9),
        "setback.categories": ("violence",),
        "setback.action": "revise",
        "setback.checked_characters": len(SECRET),
    }
    assert attributes["critique", "revision"]["setback.action"] == "pass"
    assert attributes["revision", None]["setback.outcome"] == "used"
    written = "".join(span.to_json() for span in ended)
    assert not any(word in written for word in ("forbidden", "rather", "fern"))


async def test_every_window_has_a_critique_of_its_own(
    make_bench: MakeBench, spans: InMemorySpanExporter
) -> None:
    text = "Give the fern a little water each morning and let it stand in the shade."
    bench = make_bench(Script(answers=lambda prompt: (text,)), stream=StreamMode.WINDOW)
    await bench.ask(kind=RequestOutputKind.DELTA)
    reads = [span for span in spans.get_finished_spans() if span.name == "critique"]
    covered = [(span.attributes or {})["setback.checked_characters"] for span in reads]
    assert len(covered) == sum(what == "read" for what, _ in bench.engine.log) > 1
    assert covered[-1] == len(text)


async def test_failures_are_reported_by_their_codes(
    make_bench: MakeBench, spans: InMemorySpanExporter
) -> None:
    quoting = RuntimeError(f"could not judge {SECRET}")
    with pytest.raises(CriticUnavailable):
        await make_bench(Script(fail_critique=quoting)).ask()
    bench = make_bench(Script(answers=lambda prompt: (SECRET,), harm=REVISES.harm))
    bench.store.broken = True
    with pytest.raises(StoreUnavailable):
        await bench.ask()
    ended = spans.get_finished_spans()
    codes = {(span.attributes or {}).get("error.type") for span in ended}
    assert codes == {None, "critic_unavailable", "store_unavailable"}
    assert not any("forbidden" in span.to_json() for span in ended)
