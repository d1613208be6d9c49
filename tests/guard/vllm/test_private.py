"""The list of vLLM's private pieces: true of the installed vLLM, complete, checked at start-up."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import vllm

from guard.errors import VllmIncompatible
from guard.vllm import private
from guard.vllm.private import PIECES, PrivatePiece, check_vllm, difference

ROOT = Path(__file__).parents[3]
PUBLIC = frozenset(
    {
        "vllm",
        "vllm.benchmarks",
        "vllm.benchmarks.lib.endpoint_request_func",
        "vllm.exceptions",
        "vllm.inputs",
        "vllm.logger",
        "vllm.logprobs",
        "vllm.entrypoints.launchers.api_server.entry",
        "vllm.platforms",
        "vllm.sampling_params",
        "vllm.utils.argparse_utils",
        "vllm.v1.core.sched.output",
        "vllm.v1.metrics.stats",
        "vllm.v1.worker.cpu_model_runner",
    }
)
"""Modules that vLLM documents, that only the benchmark uses, or whose types annotate a listed
piece."""


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.path)
def test_vllm_has_the_piece_and_the_module_that_uses_it_exists(piece: PrivatePiece) -> None:
    assert list(difference(piece)) == []
    used_by = (ROOT / piece.used_by).resolve()
    assert piece.path.rpartition(".")[2].rpartition(":")[2] in used_by.read_text("utf-8")


def test_every_module_of_vllm_that_is_imported_is_listed_or_public() -> None:
    listed = {piece.path.partition(":")[0] for piece in PIECES} | PUBLIC
    imported = {
        (str(file.relative_to(ROOT)), module)
        for folder in ("guard", "refine", "server")
        for file in (ROOT / folder).rglob("*.py")
        for module in _imports(file)
    }
    assert [(file, module) for file, module in sorted(imported) if module not in listed] == []


def _imports(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules = plain + [str(node.module) for node in froms]
    return [name for name in modules if name.partition(".")[0] == "vllm"]


def test_a_piece_that_differs_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = PrivatePiece("vllm.v1.request:Nothing", (), "guard/x.py", "", "")
    other = PrivatePiece("vllm.inputs:tokens_input", ("prompt_token_ids", "mood"), "", "", "")
    monkeypatch.setattr(private, "PIECES", (gone, other))
    with pytest.raises(VllmIncompatible) as raised:
        check_vllm()
    assert "vllm.v1.request:Nothing is missing" in str(raised.value)
    assert "vllm.inputs:tokens_input has no parameter mood" in str(raised.value)
    assert f"vllm=={private.CHECKED_VERSION}" in str(raised.value)


def test_another_version_starts_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check_vllm()
    assert not caplog.records
    monkeypatch.setattr(vllm, "__version__", "0.99.1+cpu")
    with caplog.at_level("WARNING", logger="vllm.setback"):
        check_vllm()
    assert "0.99.1+cpu was not tested" in caplog.text


def test_pieces_of_the_cpu_backend_are_not_needed_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = PrivatePiece("vllm.v1.request:Nothing", (), "", "", "", only_on_cpu=True)
    monkeypatch.setattr(private, "PIECES", (gone,))
    platform = import_module("vllm.platforms").current_platform
    monkeypatch.setattr(type(platform), "is_cpu", lambda _self: False)
    check_vllm()
