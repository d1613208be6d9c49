"""`setback serve` refuses at once what it cannot serve, and says what it is."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guard.errors import Unsupported
from refine.practice.integrity import PracticeModelDamaged, check_model
from refine.practice.recipe import MODEL_DIR
from server.launch import serve
from server.launch.vllm_options import check_access, check_options
from server.settings import Settings
from tests.databases import migrated_file
from tests.e2e.forked import Forked


@dataclass(frozen=True)
class Ended:
    """How the command ended. out: its standard output. err: its standard error."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs `setback serve` in this process, where vLLM is imported once, with a migrated database
    unless told otherwise. The command must end by itself."""
    before = dict(os.environ)
    database = f"sqlite:///{clean_folder}/flags.db"
    migrated_file(clean_folder / "flags.db")

    def ended(*arguments: str, **environment: str) -> Ended:
        for name, value in ({"DATABASE_URL": database} | environment).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as raised:
            serve.serve(arguments)
        captured = capsys.readouterr()
        # The interpreter prints an exit code that is no number, and exits with 1.
        code = raised.value.code
        if isinstance(code, str):
            return Ended(1, captured.out, f"{captured.err}{code}\n")
        return Ended(int(code or 0), captured.out, captured.err)

    yield ended
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


def test_the_command_ends_with_one_message(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SETBACK_", "VLLM_"))}
    log = tmp_path / "log"
    started = Forked(["serve"], clean | {"DATABASE_URL": "sqlite:///missing.db"}, tmp_path, log)
    assert started.wait(120) == 1
    assert "setback db upgrade" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_an_unknown_option_is_refused_by_name(run: Run) -> None:
    done = run("--treshold", "3")
    assert done.code == 2
    assert "unrecognized arguments: --treshold" in done.err


def test_one_help_shows_our_options_and_vllms(run: Run) -> None:
    done = run("--help=all")
    assert done.code == 0
    told_otherwise = {"user_salt", "refine"}
    options = [f"--{n.replace('_', '-')}" for n in Settings.model_fields if n not in told_otherwise]
    for option in [*options, "--max-model-len", "--tensor-parallel-size", "--api-key"]:
        assert option in done.out
    assert "user-salt" not in done.out


@pytest.mark.parametrize(
    ("environment", "message", "code"),
    [
        ({"DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/none"}, "127.0.0.1:1", 1),
        ({"DATABASE_URL": "sqlite:///missing.db"}, "setback db upgrade", 1),
        ({"SETBACK_CRITIC_TIMEOUT_S": "soon"}, "SETBACK_CRITIC_TIMEOUT_S", 2),
        ({"SETBACK_POLICY_FILE": "missing.toml"}, "missing.toml", 2),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            },
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'",
            2,
        ),
    ],
)
def test_wrong_settings_end_it_before_the_long_start_up(
    run: Run, environment: dict[str, str], message: str, code: int
) -> None:
    done = run(**environment)
    assert done.code == code
    assert message in done.err
    assert "secret" not in done.err


def test_an_option_sets_its_setting(run: Run) -> None:
    done = run("--policy-file", "absent.toml")
    assert done.code != 0
    assert "absent.toml" in done.err


def test_the_database_option_wins_over_the_environment(run: Run) -> None:
    done = run("--database-url", "sqlite:///other.db", DATABASE_URL="sqlite:///gone.db")
    assert done.code != 0
    assert "other.db" in done.err
    assert "gone.db" not in done.err


@pytest.mark.parametrize("flag", ["--grpc", "--headless", "--tokens-only"])
def test_modes_that_bypass_the_guard_are_refused(flag: str) -> None:
    with pytest.raises(Unsupported, match=f"{flag} would bypass the guard"):
        check_options(serve.parse([flag]))


def test_a_pipeline_that_would_end_with_the_first_request_is_refused() -> None:
    with pytest.raises(Unsupported, match="use --tensor-parallel-size"):
        check_options(serve.parse(["--pipeline-parallel-size", "2"]))


def test_the_rust_frontend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(Unsupported, match="VLLM_USE_RUST_FRONTEND"):
        check_options(argparse.Namespace())


def test_lora_is_on_and_the_refine_loop_has_the_lowest_priority() -> None:
    options = serve.parse([])
    assert (options.enable_lora, options.max_loras, options.max_lora_rank) == (True, 3, 32)
    assert options.scheduling_policy == "priority"
    check_options(options)
    check_options(serve.parse(["--max-loras", "8", "--max-lora-rank", "64"]))
    check_options(serve.parse(["--no-enable-lora", "--max-loras", "1"]))


@pytest.mark.parametrize(
    ("architecture", "helps", "arguments", "dtype"),
    [
        ("x86_64", "", [], "float32"),
        ("x86_64", "", ["--dtype", "bfloat16"], "bfloat16"),
        ("x86_64", "", ["some/model"], "auto"),
        ("x86_64", "avx512_bf16", [], "auto"),
        ("x86_64", "amx_bf16", [], "auto"),
        ("aarch64", "", [], "auto"),
    ],
)
def test_the_practice_model_is_not_served_in_a_type_that_the_processor_is_slow_with(
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    helps: str,
    arguments: list[str],
    dtype: str,
) -> None:
    can = {"architecture": architecture, "avx512_bf16": False, "amx_bf16": False, helps: True}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: can)
    assert serve.parse(arguments).dtype == dtype


def test_too_few_places_for_adapters_are_refused(run: Run) -> None:
    done = run("--max-loras", "2")
    assert done.code != 0
    assert "--max-loras must be at least 3" in done.err


def test_our_plugins_are_named_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    serve.load_plugins()
    assert os.environ["VLLM_PLUGINS"] == "other,setback,setback_cpu"
    monkeypatch.delenv("VLLM_PLUGINS")
    serve.load_plugins()
    assert {"setback", "setback_cpu", "lora_filesystem_resolver"} <= set(
        os.environ["VLLM_PLUGINS"].split(",")
    )


def test_metrics_of_ended_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gauge_all_41.db", "counter_41.db", "notes.txt"):
        (tmp_path / name).write_text("old")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    serve._remove_old_metrics()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    serve._remove_old_metrics()


def test_the_committed_model_is_whole() -> None:
    check_model(MODEL_DIR)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(MODEL_DIR, tmp_path / "model")
    (copy / name).unlink()
    with pytest.raises(PracticeModelDamaged, match=f"{name} .*git checkout"):
        check_model(copy)


def test_altered_weights_are_named(tmp_path: Path) -> None:
    copy = shutil.copytree(MODEL_DIR, tmp_path / "model")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(PracticeModelDamaged, match="was altered"):
        check_model(copy)


def test_without_a_key_no_other_machine_is_answered(run: Run) -> None:
    done = run("--host", "0.0.0.0")
    assert done.code != 0
    assert "setback keys make" in done.err
    check_access(serve.parse(["--host", "0.0.0.0"]), keys=True)
    check_access(serve.parse(["--host", "0.0.0.0", "--api-key", "k"]), keys=False)


def test_two_kinds_of_keys_at_once_are_refused() -> None:
    with pytest.raises(Unsupported, match="leave out --api-key"):
        check_access(serve.parse(["--api-key", "k"]), keys=True)


def test_an_open_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    check_access(serve.parse([]), keys=False)
    assert "no keys" in capsys.readouterr().err
