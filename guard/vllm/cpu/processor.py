"""What this machine's processor is slow at. Owns that knowledge alone; who serves, trains or
measures on a CPU chooses by it.
"""


def bfloat16_is_slow() -> bool:
    """Whether PyTorch multiplies bfloat16 without the processor's help, which takes several times
    as long as in float32."""
    import torch

    can = torch.cpu.get_capabilities()
    return can["architecture"] == "x86_64" and not (can["avx512_bf16"] or can["amx_bf16"])
