"""Loaded by pytest (`-p`), it makes vLLM use its second model runner, a GPU's default, on a CPU:
Triton's interpreter runs its kernels. It has to be loaded before vLLM is.
"""

import os

os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}

from triton.backends import backends

# vLLM uses Triton on a CPU only where there is a backend of this name.
backends["cpu"] = backends["nvidia"]
