"""Selects the device and its precision from the configuration."""

import platform

import torch

from detector.config import TrainConfig
from errors import InputError, first_line


def build_device(name: str, local_rank: int = 0, key: str = "train.device") -> torch.device:
    """The device of this name; "auto" selects a GPU if there is one.

    Args:
        local_rank: rank of this process on its machine, which selects its GPU.
        key: configuration key, for messages.

    Raises:
        InputError: there is no such device.
    """
    wanted = name
    if name in ("auto", "cuda") and torch.cuda.is_available():
        wanted = f"cuda:{local_rank}"
    elif name == "auto":
        wanted = "mps" if torch.backends.mps.is_available() else "cpu"
    lacking = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    if lacking.get(wanted.partition(":")[0]) is False:
        maker = "Apple" if wanted == "mps" else "NVIDIA or AMD"
        raise InputError(f"{key}: '{wanted}' cannot be used: PyTorch finds no {maker} GPU here; use cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
        torch.ones(1, device=device).item()  # fails on "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason, other = (
            first_line(error).partition(". ")[0],
            f"cuda:{wanted}" if wanted.isdecimal() else "another",
        )
        raise InputError(f"{key}: '{wanted}' cannot be used ({reason}); try {other}, or cpu") from None
    return device


def build_amp(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None: off."""
    if config.amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[config.amp]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_is_fast_in_bf16() else None


def cpu_is_fast_in_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; otherwise it is 40 times slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN reports bf16 for every CPU with AVX-512, but many of these only emulate it.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # Not every PyTorch build has oneDNN, e.g. not on macOS.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
