"""The speed policy in one place: device, precision and threads, chosen automatically, printed by `lw doctor`, overridable."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from latentworks.config import Config

__all__ = ["Engine", "bf16_in_hardware", "keep_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


class Engine(Config):
    """How a model is run. ``auto`` device: CUDA, then Apple's MPS, then CPU. float32 by default: same image for any batch size.

    ``bf16`` is about twice as fast where the processor has it; images then differ in the last bits between batch sizes.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"

    def resolve(self) -> torch.device:
        """The device to use. Raises: ValueError if the one asked for is not there."""
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if self.device == "auto":
            return torch.device(next(name for name, there in available.items() if there))
        if not available[self.device]:
            usable = ", ".join(name for name, there in available.items() if there)
            raise ValueError(f"device {self.device!r} is not available here; use one of: {usable}")
        return torch.device(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision context for the network's forward passes."""
        if self.precision == "bf16":
            return torch.autocast(self.resolve().type, dtype=torch.bfloat16)
        return nullcontext()

    def describe(self) -> dict[str, str]:
        """What was chosen and why, for people."""
        return {
            "torch": torch.__version__,
            "device": str(self.resolve()),
            "threads": str(torch.get_num_threads()),
            "sampling precision": self.precision,
            "training precision": "bf16 autocast (supported in hardware)" if bf16_in_hardware() else "float32 (no bf16 in hardware)",
        }


def bf16_in_hardware() -> bool:
    """Whether bf16 is fast here: on the GPU if there is one, else on the processor."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()


def keep_memory(device: torch.device) -> None:
    """On a CPU: let the process keep the memory that tensors give back, from now on; where the C library is not glibc, nothing changes.

    Otherwise each tensor over 32 MB is mapped anew, and clearing its pages takes about as long as the layer that fills it, as in encoding
    and decoding 512 x 512 pixels (`benchmarks/memory.py`).
    """
    if device.type == "cpu" and sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
