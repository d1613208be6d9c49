"""What vLLM's options must be so that every answer is guarded and every caller known. Owns these
rules. Both `setback serve`, before the long start-up (serve.py), and the plugin, however vLLM was
started (plugin.py), check them.
"""

import os
import sys
from argparse import Namespace

from guard.errors import Unsupported
from server.auth.access import is_local

MIDDLEWARES = (
    "server.guarded.middleware.GuardMiddleware",
    "server.routes.body.BodyMiddleware",
    "server.auth.access.AccessMiddleware",
    "server.routes.cors.OuterCorsMiddleware",
    "server.guarded.anthropic_errors.AnthropicErrorMiddleware",
    "server.telemetry.logs.RequestIdMiddleware",
)
"""The last one is the outermost."""

MIN_LORAS = 3
"""The active adapter, the previous one while its requests finish, and a candidate."""

_UNGUARDED_MODES = {
    "grpc": "--grpc",
    "grpc_port": "--grpc-port",
    "headless": "--headless",
    "tokens_only": "--tokens-only",
}


def add_middlewares(options: Namespace) -> None:
    """Adds ours to vLLM's --middleware, outermost, unless they are there. vLLM reads the list, in
    `init_entrypoints_middleware`, after it has attached the endpoint plugins."""
    others = [name for name in options.middleware if name not in MIDDLEWARES]
    options.middleware = [*others, *MIDDLEWARES]


def check_options(options: Namespace) -> None:
    """Raises Unsupported for options that would bypass the guard or starve it."""
    _refuse_unguarded_modes(options)
    _refuse_pipelines_on_a_cpu(options)
    _refuse_too_few_loras(options)
    if options.scheduling_policy != "priority":
        raise Unsupported(
            "--scheduling-policy must be priority, so that the refine loop's requests wait for all "
            "others.",
            "--scheduling-policy",
        )


def check_access(options: Namespace, *, keys: bool) -> None:
    """Raises Unsupported when others could reach the server without a key. keys: whether any key is
    in force."""
    if keys and options.api_key:
        raise Unsupported(
            "There are keys of `setback keys` in the database, and a caller can send only one key; "
            "leave out --api-key.",
            "--api-key",
        )
    if keys:
        return
    if not is_local(options):
        raise Unsupported(
            f"--host {options.host or '0.0.0.0'} would open the server to others without a key; "
            "create one with `setback keys make NAME --role admin`, or give --host 127.0.0.1.",
            "--host",
        )
    if not options.api_key:
        sys.stderr.write("setback: no keys: only this machine is answered, with full access\n")


def _refuse_unguarded_modes(options: Namespace) -> None:
    """Raises Unsupported for modes in which vLLM loads no endpoint plugin."""
    for name, flag in _UNGUARDED_MODES.items():
        if getattr(options, name, None):
            raise Unsupported(f"{flag} would bypass the guard; leave it out.", flag)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise Unsupported("VLLM_USE_RUST_FRONTEND would bypass the guard; unset it.")


def _refuse_pipelines_on_a_cpu(options: Namespace) -> None:
    """Raises Unsupported for pipelines with which vLLM starts and ends with the first request."""
    from vllm.platforms import current_platform

    # Only what compiles a model makes the tensors that a later stage receives into.
    compiled = not (options.enforce_eager or options.enable_lora)
    if current_platform.is_cpu() and options.pipeline_parallel_size > 1 and not compiled:
        raise Unsupported(
            "--pipeline-parallel-size needs a compiled model on a CPU, or vLLM ends with the first "
            "request; use --tensor-parallel-size, or --no-enable-lora --no-enforce-eager.",
            "--pipeline-parallel-size",
        )


def _refuse_too_few_loras(options: Namespace) -> None:
    """Raises Unsupported when requests would wait for each other's adapters during a swap."""
    if options.enable_lora and options.max_loras < MIN_LORAS:
        raise Unsupported(
            f"--max-loras must be at least {MIN_LORAS}: the active adapter, the previous one "
            "and a candidate. To serve without adapters: --no-enable-lora.",
            "--max-loras",
        )
