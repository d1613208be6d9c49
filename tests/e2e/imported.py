"""What all servers import, imported in the order of `setback serve`: see forked.py. The garbage
collector leaves it out, which takes a fifth off the time.
"""

import atexit
import gc
from importlib import import_module

from server.launch.serve import load_plugins

gc.disable()
load_plugins()
for module in (
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "server.launch.plugin",
):
    import_module(module)
gc.freeze()
gc.enable()
# Libraries in C++ would report what is never collected as leaks.
atexit.register(gc.unfreeze)
