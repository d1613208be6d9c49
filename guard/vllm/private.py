"""Every private piece of vLLM that Setback uses: why, and what would replace it. Owns this list and
its check at start-up. What uses the pieces is in the module that each names; the contract tests are
in tests/guard/vllm/.

vLLM promises nothing about these pieces. A version other than the checked one starts with a warning
while all pieces are as listed, and not at all otherwise.
"""

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from guard.errors import VllmIncompatible

CHECKED_VERSION = "0.32.0"
"""The version of vLLM with which all pieces were checked."""

_RFC = "the engine hook of RFC #43999"
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class PrivatePiece:
    """A class, method or function that vLLM does not promise to keep.

    path: `module:name`. parameters: names of the parameters that Setback passes or overrides, which
    must exist. used_by: the module here. reason: what it is used for. replacement: what upstream
    would make it unnecessary. only_on_cpu: whether only the CPU backend needs it.
    """

    path: str
    parameters: tuple[str, ...]
    used_by: str
    reason: str
    replacement: str
    only_on_cpu: bool = False


def _parser(path: str, parameters: tuple[str, ...], reason: str) -> PrivatePiece:
    return PrivatePiece(
        path, parameters, "guard/vllm/call_reader.py", reason, "tool calls in the engine's output"
    )


def _application(name: str, parameters: tuple[str, ...], reason: str) -> PrivatePiece:
    path = f"vllm.entrypoints.launchers.{name}"
    return PrivatePiece(
        path, parameters, "server/launch/ray_serve.py", reason, "endpoint plugins in Ray Serve LLM"
    )


def _session(path: str, parameters: tuple[str, ...], reason: str) -> PrivatePiece:
    return PrivatePiece(f"vllm.v1.{path}", parameters, "guard/vllm/scheduler.py", reason, _RFC)


def _scheduler(name: str, parameters: tuple[str, ...], reason: str) -> PrivatePiece:
    return _session(f"core.sched.scheduler:Scheduler.{name}", parameters, reason)


def _cpu(path: str, parameters: tuple[str, ...], file: str, reason: str, fix: str) -> PrivatePiece:
    return PrivatePiece(path, parameters, f"guard/vllm/cpu/{file}", reason, fix, only_on_cpu=True)


_LORA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
_LORA_FIX = "a fix of #48421"
_SEED_FIX = "a CPU generator that is not rewound"
_FORK_FIX = "an option to fork the engine and keep the worker in it"

PIECES = (
    PrivatePiece(
        "vllm.engine.protocol:EngineClient.generate",
        ("prompt", "sampling_params", "request_id", "lora_request", "priority"),
        "guard/engine.py",
        "every answer passes through it",
        _RFC,
    ),
    PrivatePiece(
        "vllm.engine.protocol:EngineClient.check_admission",
        (),
        "server/launch/guarded_handlers.py",
        "tells an engine from other objects in the search for unguarded handlers",
        _RFC,
    ),
    PrivatePiece(
        "vllm.v1.engine.output_processor:OutputProcessor.propagate_error",
        ("e",),
        "guard/vllm/shutdown.py",
        "requests that wait for an engine that was shut down end",
        "a shutdown that ends them itself",
    ),
    PrivatePiece(
        "vllm.v1.engine.exceptions:EngineDeadError",
        (),
        "guard/vllm/shutdown.py",
        "what such requests raise",
        "a shutdown that ends them itself",
    ),
    PrivatePiece(
        "vllm.outputs:RequestOutput",
        ("outputs", "finished", "kv_transfer_params"),
        "guard/draft.py",
        "answers are held back, cut and replaced in it",
        _RFC,
    ),
    PrivatePiece(
        "vllm.outputs:CompletionOutput",
        ("index", "text", "token_ids", "logprobs", "finish_reason", "stop_reason"),
        "guard/draft.py",
        "answers are held back, cut and replaced in it",
        _RFC,
    ),
    PrivatePiece(
        "vllm.lora.request:LoRARequest",
        ("lora_name", "lora_int_id", "lora_path"),
        "guard/adapters.py",
        "a new name, path and number for every version",
        "a supported way to swap an adapter without stale prefix blocks (#30931)",
    ),
    PrivatePiece(
        "vllm.entrypoints.cli.serve:ServeSubcommand.cmd",
        ("args",),
        "server/launch/serve.py",
        "starts vLLM's server with our defaults",
        "none needed: `vllm serve` with the plugin",
    ),
    PrivatePiece(
        "vllm.entrypoints.launchers.cli_args:make_arg_parser",
        ("parser",),
        "server/launch/serve.py",
        "takes all of vLLM's options",
        "none needed: `vllm serve` with the plugin",
    ),
    PrivatePiece(
        "vllm.entrypoints.launchers.cli_args:validate_parsed_serve_args",
        ("args",),
        "server/launch/serve.py",
        "vLLM's own check of its options",
        "none needed: `vllm serve` with the plugin",
    ),
    _application(
        "api_server.entry:build_async_engine_client",
        ("args",),
        "starts an engine in a process of Ray's",
    ),
    _application(
        "app:build_app", ("args", "supported_tasks", "model_config"), "vLLM's application"
    ),
    _application(
        "api_server.app_state:init_app_state",
        ("engine_client", "state", "args"),
        "installs the guard in it",
    ),
    PrivatePiece(
        "vllm.entrypoints.serve.middleware.register:init_entrypoints_middleware",
        ("args",),
        "server/launch/vllm_options.py",
        "adds --middleware after the endpoint plugins, which can still name theirs in it",
        "a hook for the middlewares of endpoint plugins",
    ),
    PrivatePiece(
        "vllm.entrypoints.serve.utils.api_utils:cli_env_setup",
        (),
        "server/launch/serve.py",
        "the environment of vLLM's command line",
        "none needed: `vllm serve` with the plugin",
    ),
    PrivatePiece(
        "vllm.renderers.chat_utils:load_chat_template",
        ("chat_template",),
        "server/launch/plugin.py",
        "reads --chat-template as vLLM does",
        "the template in the plugin's state",
    ),
    _parser(
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat._make_parser",
        ("request", "tokenizer", "chat_template_kwargs"),
        "finds the parser that reads an answer's tool calls",
    ),
    _parser(
        "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses._make_response_parser",
        ("request", "tokenizer", "chat_template_kwargs"),
        "finds the parser that reads an answer's tool calls",
    ),
    _parser(
        "vllm.parser.abstract_parser:Parser.parse",
        ("model_output", "request", "enable_auto_tools", "model_output_token_ids"),
        "reads an answer's tool calls as the client gets them",
    ),
    _parser(
        "vllm.parser.abstract_parser:Parser.parse_delta",
        ("delta_text", "delta_token_ids", "request", "prompt_token_ids", "finished"),
        "reads a stream's tool calls as the client gets them",
    ),
    _parser(
        "vllm.parser.abstract_parser:Parser.set_prompt_token_ids",
        ("prompt_token_ids",),
        "tells the parser where the answer begins",
    ),
    _scheduler("add_request", ("request",), "notes a guarded request's plan"),
    _scheduler("finish_requests", ("request_ids", "finished_status"), "forgets a plan"),
    _scheduler("schedule", (), "frees the cache that waiting critiques hold"),
    _scheduler(
        "update_from_output",
        ("scheduler_output", "model_runner_output"),
        "sends tokens in groups, and the labels with the answer's last one",
    ),
    _scheduler("make_stats", (), "statistics are sent with tokens only"),
    _scheduler("_handle_stopped_request", ("request",), "goes on with the critique"),
    _scheduler("_free_request_blocks", ("request",), "frees the cache that a critique holds"),
    _session(
        "core.sched.async_scheduler:AsyncScheduler",
        (),
        "schedules a step before the last one's end",
    ),
    _session(
        "request:StreamingUpdate",
        ("mm_features", "prompt_token_ids", "max_tokens", "arrival_time", "sampling_params"),
        "the critique as a session's next input",
    ),
    _session(
        "engine:EngineCoreOutput",
        ("request_id", "new_token_ids", "new_logprobs", "finish_reason", "kv_transfer_params"),
        "outputs are held back and merged",
    ),
    _session(
        "engine:EngineCoreOutputs",
        ("outputs", "scheduler_stats", "finished_requests"),
        "outputs are held back and merged",
    ),
    _session(
        "outputs:LogprobsLists",
        ("logprob_token_ids", "logprobs", "sampled_token_ranks"),
        "merges the log-probabilities of outputs held back",
    ),
    _cpu(
        "vllm.v1.outputs:LogprobsTensors",
        ("logprob_token_ids", "logprobs", "selected_token_ranks"),
        "label_rows.py",
        "labels in the rows of requests that ask for them",
        "logprob_token_ids by row",
    ),
    _cpu(
        "vllm.v1.sample.sampler:Sampler.forward",
        ("logits", "sampling_metadata"),
        "backend.py",
        "labels in the rows of requests that ask for them",
        "logprob_token_ids by row",
    ),
    _cpu(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
        ("logits",),
        "backend.py",
        "keeps the seed of a request whose token is dropped",
        _SEED_FIX,
    ),
    _cpu(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync",
        ("scheduler_output", "sampler_output"),
        "backend.py",
        "finds no generator to rewind",
        _SEED_FIX,
    ),
    _cpu(
        "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper",
        (),
        "backend.py",
        "names the class that applies adapters",
        _LORA_FIX,
    ),
    _cpu(
        f"{_LORA}.update_metadata", ("mapping",), "lora.py", "which rows an adapter has", _LORA_FIX
    ),
    _cpu(
        f"{_LORA}.add_lora_linear",
        ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"),
        "lora.py",
        "applies adapters to layers",
        _LORA_FIX,
    ),
    _cpu(
        f"{_LORA}.add_lora_embedding",
        ("y", "x", "lora_b_stacked"),
        "lora.py",
        "applies adapters to embeddings",
        _LORA_FIX,
    ),
    _cpu(
        f"{_LORA}.add_lora_logits",
        ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale"),
        "lora.py",
        "applies adapters to logits",
        _LORA_FIX,
    ),
    _cpu(
        "vllm.v1.executor.uniproc_executor:UniProcExecutor._init_executor",
        (),
        "executor.py",
        "binds threads before the worker starts",
        _FORK_FIX,
    ),
    _cpu(
        "vllm.v1.executor.uniproc_executor:UniProcExecutor.execute_model",
        (),
        "executor.py",
        "binds the computing thread",
        _FORK_FIX,
    ),
    _cpu(
        "vllm.v1.executor.uniproc_executor:UniProcExecutor.compile_or_warm_up_model",
        (),
        "executor.py",
        "the last call before the engine starts its threads for messages",
        _FORK_FIX,
    ),
    _cpu(
        "vllm.utils.ompmultiprocessing:OMPProcessManager",
        ("config",),
        "executor.py",
        "the processors that vLLM chose",
        _FORK_FIX,
    ),
    _cpu(
        "vllm.v1.engine.utils:get_mp_context",
        (),
        "executor.py",
        "how the engine's process is started",
        _FORK_FIX,
    ),
)


def check_vllm() -> None:
    """Checks the installed vLLM before a server starts. Raises VllmIncompatible, which names every
    piece that differs."""
    import vllm
    from vllm.platforms import current_platform

    differences = list(_differences(on_cpu=current_platform.is_cpu()))
    if differences:
        raise VllmIncompatible(
            f"vLLM {vllm.__version__} differs from {CHECKED_VERSION}, with which this version of "
            f"Setback works: {'; '.join(differences)}. Install vllm=={CHECKED_VERSION}."
        )
    if vllm.__version__.partition("+")[0] != CHECKED_VERSION:
        _log.warning(
            "vLLM %s was not tested with this version of Setback, which was checked with %s. The "
            "private pieces that it uses look the same.",
            vllm.__version__,
            CHECKED_VERSION,
        )


def _differences(*, on_cpu: bool) -> Iterator[str]:
    for piece in PIECES:
        if on_cpu or not piece.only_on_cpu:
            yield from difference(piece)


def difference(piece: PrivatePiece) -> Iterator[str]:
    """Yields in words how a piece differs from what is expected; nothing if it does not."""
    module, _, name = piece.path.partition(":")
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        yield f"{piece.path} is missing"
        return
    missing = set(piece.parameters) - set(inspect.signature(value).parameters)
    if missing:
        yield f"{piece.path} has no parameter {', '.join(sorted(missing))}"
