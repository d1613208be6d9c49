"""What this machine's processor is slow at. Owns that knowledge alone; who serves, trains or
measures on a CPU chooses by it.
"""


def bfloat16_is_slow() -> bool:
    """Whether PyTorch multiplies bfloat16 without the processor's help: serving the practice model
    then takes 2.6 times as long as in float32, training it five times."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX2"
