"""From the configuration to the device, and what it computes in."""

import platform

import torch

from detector.config import TrainConfig
from errors import InputError, first_line


def build_device(name: str, local_rank: int = 0, key: str = "train.device") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one.

    Args:
        local_rank: of several processes on this machine, each takes the GPU of its number.
        key: where the user set it, for the error.

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
        torch.ones(1, device=device).item()  # which "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason, other = (
            first_line(error).partition(". ")[0],
            f"cuda:{wanted}" if wanted.isdecimal() else "another",
        )
        raise InputError(f"{key}: '{wanted}' cannot be used ({reason}); try {other}, or cpu") from None
    return device


def build_amp(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None is off."""
    if config.amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[config.amp]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_is_fast_in_bf16() else None


def cpu_is_fast_in_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without, it is 40 times slower than in float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN calls every CPU with AVX-512 fit for bf16; many of these only emulate it.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # Not every PyTorch has oneDNN: that of macOS has not.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
