"""Every format as it is published, with rows of our own, and why sets are refused."""

import gzip
import json
from pathlib import Path

import pytest

from refine.benchmarks.formats import FORMATS, read_set
from refine.benchmarks.rows import BenchmarkRow, BenchmarkSet, Kind
from refine.errors import DataInvalid

ROOT = Path(__file__).parents[3]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


EXAMPLES: dict[str, tuple[str, str, list[tuple[Kind, str, bool, str]]]] = {
    "openai_moderation": (
        "a.jsonl",
        lines(
            {"prompt": "one", "S": 0, "H": 1, "V": 0},
            {"prompt": "two", "S": 0, "V2": 0},
            {"prompt": "three", "S": None},
        ),
        [("text", "one", True, ""), ("text", "two", False, "")],
    ),
    "xstest": (
        "a.csv",
        'id,prompt,type,label,focus,note\n1,"one, quoted",homonyms,safe,kill,\n'
        "2,two,contrast_homonyms,unsafe,kill,n\n",
        [
            ("request", "one, quoted", False, "homonyms"),
            ("request", "two", True, "contrast_homonyms"),
        ],
    ),
    "toxicchat": (
        "a.csv",
        "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation\n"
        'x1,one,reply,True,1,0,"[]"\nx2,two,reply,False,0,0,"[]"\n',
        [("text", "one", True, ""), ("text", "two", False, "")],
    ),
    "beavertails": (
        "a.jsonl",
        lines(
            {"prompt": "p", "response": "one", "category": {}, "is_safe": False},
            {"prompt": "p", "response": "two", "category": {}, "is_safe": True},
        ),
        [("answer", "one", True, ""), ("answer", "two", False, "")],
    ),
    "saferlhf": (
        "a.jsonl",
        lines(
            {
                "prompt": "p",
                "response_0": "one",
                "response_1": "two",
                "is_response_0_safe": True,
                "is_response_1_safe": False,
            }
        ),
        [("answer", "one", False, ""), ("answer", "two", True, "")],
    ),
    "harmbench": (
        "a.json",
        json.dumps(
            {
                "b1": [
                    {"test_case": "p", "generation": "one", "label": 1},
                    {"test_case": "p", "generation": "", "label": 0},
                ],
                "b2": [
                    {
                        "behavior_id": "b2",
                        "test_case": "p",
                        "generation": "two",
                        "human_0": 1,
                        "human_1": 0,
                        "human_2": 0,
                    }
                ],
            },
            indent=1,
        ),
        [("answer", "one", True, ""), ("answer", "two", False, "")],
    ),
    "wildguard": (
        "a.jsonl",
        lines(
            {
                "prompt": "p",
                "response": "one",
                "prompt_harm_label": "harmful",
                "response_harm_label": "unharmful",
                "response_refusal_label": "refusal",
            },
            {
                "prompt": "p",
                "response": "two",
                "prompt_harm_label": "harmful",
                "response_harm_label": "harmful",
                "response_refusal_label": "compliance",
            },
            {"prompt": "p", "response": None, "response_harm_label": None},
        ),
        [("answer", "one", False, ""), ("answer", "two", True, "")],
    ),
    "wildguard_requests": (
        "a.csv",
        "prompt,adversarial,response,prompt_harm_label,response_harm_label\n"
        "one,True,,harmful,\ntwo,False,r,unharmful,unharmful\nthree,False,r,,\n",
        [("request", "one", True, ""), ("request", "two", False, "")],
    ),
    "ailuminate": (
        "a.csv",
        "release_prompt_id,prompt_text,hazard,persona,locale,prompt_hash\nx_1,one,hte,s,en_US,0\n",
        [("request", "one", True, "hte")],
    ),
    "hatecheck": (
        "a.csv",
        ",functionality,case_id,test_case,label_gold,target_ident\n"
        "0,derog_h,1,one ,hateful,women\n1,ident_nh,2,two,non-hateful,\n",
        [("text", "one ", True, "derog_h"), ("text", "two", False, "ident_nh")],
    ),
    "jsonl": (
        "a.jsonl",
        lines(
            {"text": "one", "label": "harmful", "kind": "k"},
            {"request": "two", "label": "harmless"},
            {"request": "p", "answer": "three", "label": "harmful"},
            {
                "messages": [
                    {"role": "user", "content": "p"},
                    {"role": "assistant", "content": "q"},
                    {"role": "user", "content": "four"},
                ],
                "label": "harmless",
            },
        ),
        [
            ("text", "one", True, "k"),
            ("request", "two", False, ""),
            ("answer", "three", True, ""),
            ("request", "four", False, ""),
        ],
    ),
}


def simple(row: BenchmarkRow) -> tuple[Kind, str, bool, str]:
    return row.kind, row.messages[-1]["content"], row.harmful, row.group


def read(folder: Path, name: str, content: str, file: str = "a.jsonl") -> BenchmarkSet:
    path = folder / file
    path.write_bytes(content.encode())
    return read_set(name, path)


def refusal(folder: Path, name: str, content: str, file: str = "a.jsonl") -> str:
    with pytest.raises(DataInvalid) as refused:
        read(folder, name, content, file)
    return str(refused.value)


def test_every_format_has_an_example() -> None:
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_set_is_read_as_it_is_published(name: str, tmp_path: Path) -> None:
    file, content, rows = EXAMPLES[name]
    assert [simple(row) for row in read(tmp_path, name, content, file).rows] == rows


@pytest.mark.parametrize("name", FORMATS)
def test_gzip_a_byte_order_mark_and_crlf_change_nothing(name: str, tmp_path: Path) -> None:
    file, content, rows = EXAMPLES[name]
    path = tmp_path / f"{file}.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()))
    benchmark = read_set(name, path)
    assert [simple(row) for row in benchmark.rows] == rows
    assert benchmark.sha256 == read(tmp_path, name, content, file).sha256


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_something_else_is_refused_with_its_line_and_the_format(
    name: str, tmp_path: Path
) -> None:
    file, _, _ = EXAMPLES[name]
    message = refusal(tmp_path, name, "something\nelse\n", file)
    assert str(tmp_path / file) in message
    assert "line 1: " in message
    assert FORMATS[name].description in message


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    assert "line 1: " in refusal(tmp_path, name, "", EXAMPLES[name][0])


def test_harmbench_behaviours_are_requests_with_their_context(tmp_path: Path) -> None:
    content = (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "one,standard,illegal,,,b1\ntwo,contextual,illegal,context,the context,b2\n"
    )
    benchmark = read(tmp_path, "harmbench", content, "a.csv")
    assert [simple(row) for row in benchmark.rows] == [
        ("request", "one", True, "illegal"),
        ("request", "the context\n\n---\n\ntwo", True, "illegal"),
    ]


def test_an_answer_keeps_its_conversation(tmp_path: Path) -> None:
    content = lines({"prompt": "p", "response": "r", "is_safe": True})
    (row,) = read(tmp_path, "beavertails", content).rows
    assert row.messages == (
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "r"},
    )


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("openai_moderation", {"no label": 1}),
        ("harmbench", {"no answer": 1}),
        ("wildguard", {"no label": 1}),
        ("xstest", {}),
    ],
)
def test_records_that_are_left_out_are_counted(
    name: str, left_out: dict[str, int], tmp_path: Path
) -> None:
    file, content, _ = EXAMPLES[name]
    assert read(tmp_path, name, content, file).left_out == left_out


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_a_newline_ends_a_line(separator: str, tmp_path: Path) -> None:
    content = f'{{"text": "a{separator}b", "label": "harmful"}}\n'
    (row,) = read(tmp_path, "jsonl", content).rows
    assert row.messages[-1]["content"] == f"a{separator}b"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_csv_cell_may_hold_any_separator(separator: str, tmp_path: Path) -> None:
    content = f"id,prompt,type,label\n1,a{separator}b,t,safe\n"
    (row,) = read(tmp_path, "xstest", content, "a.csv").rows
    assert row.messages[-1]["content"] == f"a{separator}b"


def test_the_line_of_a_csv_row_is_its_first(tmp_path: Path) -> None:
    content = 'id,prompt,type,label\n1,"a\nb",t,safe\n\n2,c,t,maybe\n'
    message = refusal(tmp_path, "xstest", content, "a.csv")
    assert "line 5: label is 'maybe'; write safe or unsafe" in message


def test_every_wrong_line_is_named_up_to_ten(tmp_path: Path) -> None:
    message = refusal(tmp_path, "jsonl", "{}\n" * 12 + "[]\n")
    assert "line 10: " in message
    assert "line 11: " not in message
    assert "and 3 more lines" in message


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("jsonl", '{"text": "a", "label": "bad"}', "label: Input should be"),
        ("jsonl", '{"label": "harmful"}', "give exactly one of"),
        ("jsonl", '{"text": "a", "answer": "b", "label": "harmful"}', '"answer" needs'),
        ("jsonl", '{"text": "a", "anwser": "b", "label": "harmful"}', "anwser: Extra"),
        ("jsonl", '{"text": " ", "label": "harmful"}', "text: "),
        (
            "jsonl",
            '{"messages": [{"role": "assistant", "content": "a"}], "label": "harmful"}',
            '"messages" must end with the user',
        ),
        ("openai_moderation", '{"prompt": "a", "S": 2}', "S is '2'; write 0 or 1"),
        ("openai_moderation", '{"S": 1}', "prompt is missing or empty"),
        ("openai_moderation", '{"prompt": 3, "S": 1}', "prompt is not a text"),
        ("beavertails", '{"prompt": "a", "response": "b"}', "is_safe is missing"),
        ("beavertails", '{"prompt": "a"', "not JSON"),
    ],
)
def test_a_wrong_line_is_refused_with_the_fix(
    name: str, content: str, problem: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, name, f"\n{content}\n")
    assert f"line 2: {problem}" in message


def test_completions_that_nobody_judged_are_refused_by_line(tmp_path: Path) -> None:
    content = '{\n "b1": [{"test_case": "p", "generation": "g"}],\n "b2": {}\n}'
    message = refusal(tmp_path, "harmbench", content, "a.json")
    assert "line 2: label is missing; write 0 or 1" in message
    assert "line 3: 'b2' is not a list" in message


def test_a_csv_row_with_too_many_cells_is_refused(tmp_path: Path) -> None:
    content = "id,prompt,type,label\n1,a,b,t,safe\n"
    assert "line 2: 5 cells under 4 columns" in refusal(tmp_path, "xstest", content, "a.csv")


def test_invalid_utf8_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "label": "harmful"}\n"\xff"\n')
    with pytest.raises(DataInvalid, match="line 2: not UTF-8"):
        read_set("jsonl", path)


def test_a_file_that_is_no_gzip_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="cannot be read"):
        read(tmp_path, "jsonl", "{}", "a.jsonl.gz")
    with pytest.raises(DataInvalid, match="cannot be read"):
        read_set("jsonl", tmp_path / "none.jsonl")


def test_a_long_field_is_read(tmp_path: Path) -> None:
    content = f"id,prompt,type,label\n1,{'a' * 200_000},t,safe\n"
    (row,) = read(tmp_path, "xstest", content, "a.csv").rows
    assert len(row.messages[0]["content"]) == 200_000


@pytest.mark.parametrize(
    ("name", "file", "rows", "harmful"),
    [
        ("openai_moderation", "openai_moderation.jsonl.gz", 1680, 522),
        ("xstest", "xstest_prompts.csv", 450, 200),
    ],
)
def test_the_real_files_are_read(name: str, file: str, rows: int, harmful: int) -> None:
    path = ROOT.parent / "shared" / "data" / file
    if not path.is_file():
        pytest.skip(f"there is no shared/data/{file} beside the checkout")
    benchmark = read_set(name, path)
    assert (len(benchmark.rows), sum(row.harmful for row in benchmark.rows)) == (rows, harmful)
