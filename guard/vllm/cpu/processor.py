"""What this machine's processor is slow at. Owns the check alone; serving, training and evaluation
choose their data type by it.
"""


def bfloat16_is_slow() -> bool:
    """Whether PyTorch emulates bfloat16 on this processor, which is several times slower than
    float32."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return capabilities["architecture"] == "x86_64" and not (
        capabilities["avx512_bf16"] or capabilities["amx_bf16"]
    )
