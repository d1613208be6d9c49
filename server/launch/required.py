"""Ends a plain `vllm serve`, or a replica of Ray Serve LLM, that would be unguarded although it was
meant to be guarded. Owns this check only; the guard itself is the endpoint plugin (plugin.py).

Registered as `setback` in the entry-point group vllm.general_plugins, which vLLM loads by default.
vLLM loads an endpoint plugin only if VLLM_PLUGINS names it, and goes on without one that it cannot
import.
"""

import multiprocessing
import os
import sys
from importlib import import_module
from pathlib import Path

_NAME = "setback"
_PLUGIN = "server.launch.plugin"
_SETTINGS = "SETBACK_"
_RAY_SERVE_LLM = "ray.llm._internal.serve"


def load() -> None:
    """The entry point. Raises SystemExit when vLLM's server would start without the guard: Setback
    is configured and VLLM_PLUGINS is not set, or the plugin that it names cannot be imported.
    Raises RuntimeError in a replica of Ray Serve LLM, which builds an engine without the guard."""
    if multiprocessing.parent_process() is not None:
        return
    plugins = os.environ.get("VLLM_PLUGINS")
    if _RAY_SERVE_LLM in sys.modules and (plugins is None or _NAME in plugins.split(",")):
        _refuse_ray_serve_llm()
    if not _is_vllm_server(sys.argv):
        return
    if plugins is None:
        _refuse_if_configured()
    elif _NAME in plugins.split(","):
        _refuse_without_plugin()


def _is_vllm_server(argv: list[str]) -> bool:
    """Whether this process is `vllm serve` or `python -m vllm.entrypoints.openai.api_server`."""
    program = Path(argv[0])
    if program.name == "api_server.py":
        return "vllm" in program.parts
    return program.name == "vllm" and argv[1:2] == ["serve"]


def _settings() -> list[str]:
    return sorted(name for name in os.environ if name.startswith(_SETTINGS))


def _refuse_ray_serve_llm() -> None:
    settings = _settings()
    if settings:
        raise RuntimeError(
            f"setback: {settings[0]} is set, but Ray Serve LLM builds an engine without the guard. "
            "Use server.launch.ray_serve.guarded_deployment, or set VLLM_PLUGINS= to serve without "
            "the guard."
        )


def _refuse_if_configured() -> None:
    settings = _settings()
    if settings:
        sys.exit(
            f"setback: {settings[0]} is set, but this server would have no guard. Set "
            "VLLM_PLUGINS=setback (on a CPU VLLM_PLUGINS=setback,setback_cpu), or VLLM_PLUGINS= "
            "to serve without it."
        )


def _refuse_without_plugin() -> None:
    try:
        import_module(_PLUGIN)
    except ImportError as error:
        sys.exit(f"setback: the guard cannot be loaded, so nothing is served: {error}")
