"""The requests of the report split that are sent to a server, in all ways."""

from collections import Counter

from refine.seed import corpus, through


def test_a_quarter_of_the_harmful_requests_goes_each_way() -> None:
    sent = through.requests(40)
    assert Counter(one.kind for one in sent) == {"harmful": 40, "twin": 40, "ordinary": 40}
    harmful = [one for one in sent if one.kind == "harmful"]
    ways = Counter(one.way.partition(":")[0] for one in harmful)
    assert ways == dict.fromkeys(("plain", "wrapper", "padded answer", "long system prompt"), 10)
    assert {one.way for one in sent if one.kind != "harmful"} == {"plain"}


def test_only_the_report_split_is_sent() -> None:
    of_report = {pair.harmful[-1]["content"] for pair in corpus.pairs("report")}
    families = {f"wrapper: {wrapper.family}" for wrapper in corpus.wrappers("report")}
    for one in through.requests(200):
        if one.way.startswith("wrapper"):
            assert one.way in families
            assert any(text in one.messages[-1]["content"] for text in of_report)
        elif one.kind == "harmful":
            assert one.messages[-1]["content"] in of_report


def test_the_ways_of_a_request_change_what_is_sent() -> None:
    by_way = {one.way: one for one in through.requests(40) if one.kind == "harmful"}
    assert by_way["padded answer"].options["ignore_eos"]
    system, *_ = by_way["long system prompt"].messages
    assert system["role"] == "system"
    assert len(system["content"].split()) > 600


def test_a_seed_sends_the_same_again() -> None:
    assert through.requests(8, seed=1) == through.requests(8, seed=1) != through.requests(8, seed=2)
