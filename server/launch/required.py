"""Ends a plain `vllm serve` that would be unguarded although it was meant to be guarded. Owns this
check only; the guard itself is the endpoint plugin (plugin.py).

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


def load() -> None:
    """The entry point. Raises SystemExit when vLLM's server would start without the guard: Setback
    is configured and VLLM_PLUGINS is not set, or the plugin that it names cannot be imported."""
    if multiprocessing.parent_process() is not None or not _is_vllm_server(sys.argv):
        return
    plugins = os.environ.get("VLLM_PLUGINS")
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


def _refuse_if_configured() -> None:
    settings = sorted(name for name in os.environ if name.startswith(_SETTINGS))
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
