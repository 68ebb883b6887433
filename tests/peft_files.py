"""Adapter folders read with nothing but safetensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def deltas_of(folder: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A [r, in] and B [out, r] of each layer, scale not applied."""
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    names = {name.rsplit(".lora_", 1)[0] for name in tensors}
    return {
        name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names
    }
