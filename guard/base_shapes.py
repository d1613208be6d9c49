"""The shapes of a base model's modules. Owns their derivation from the model's configuration. Does
not read the weights.
"""

from typing import Any

from guard.adapter_config import Shapes, layer_name


def base_shapes(hf_config: Any) -> Shapes | None:
    """Returns the shape of every module that an adapter can change, or None when Transformers does
    not have the architecture.

    hf_config: a Transformers configuration. Takes seconds: call it in a thread.
    """
    import torch
    import transformers

    names = getattr(hf_config, "architectures", None) or [""]
    architecture = getattr(transformers, names[0], None)
    if architecture is None:
        return None
    with torch.device("meta"):
        model = architecture(hf_config)
    shapes: dict[str, set[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        shape = _shape(module)
        if shape is not None:
            shapes.setdefault(layer_name(name), set()).add(shape)
    return {name: frozenset(sizes) for name, sizes in shapes.items()}


def _shape(module: Any) -> tuple[int, int] | None:
    """Returns a layer's input and output sizes, or None for other modules."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None
