"""What only vLLM's CPU backend needs; installed by `setback serve` on a CPU."""

PLUGIN = "setback_cpu"
"""The plugin's name in the entry-point group vllm.general_plugins. It stands here so that a module
which only names the plugin does not import vLLM."""

FEW_PROCESSORS = 4
"""Up to so many, each of them computes. vLLM keeps one free for the engine beside its worker; in
executor.py these are one process."""
