"""The shapes of a model's modules, from its configuration alone. Owns that derivation; the weights
are never read.
"""

from typing import Any

from guard.adapter_config import Shapes, layer_name


def base_shapes(hf_config: Any) -> Shapes | None:
    """Of every module that an adapter can change; None for an architecture that Transformers does
    not have.

    hf_config: as Transformers loads it. Takes seconds: call it in a thread.
    """
    import torch
    import transformers

    names = getattr(hf_config, "architectures", None) or [""]
    architecture = getattr(transformers, names[0], None)
    if architecture is None:
        return None
    with torch.device("meta"):
        model = architecture(hf_config)
    found: dict[str, set[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        shape = _shape(module)
        if shape is not None:
            found.setdefault(layer_name(name), set()).add(shape)
    return {name: frozenset(shapes) for name, shapes in found.items()}


def _shape(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None
