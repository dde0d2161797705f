"""The device that a stage computes on, checked once; torch is imported here at load only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streams.errors import OutOfMemory, SettingsError, SickHost

if TYPE_CHECKING:
    import torch

    from workers.memory_budget import MemoryBudget


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What a deployment asks for: `cpu`, `cuda` or `cuda:N`; a dtype's name; 0 = torch's choice.

    `attention`: one of diffusers' attention backends, for transformers; None: torch's own choice.
    `budget_bytes`: what forwards may hold on the CPU (workers/memory_budget.py); None: no limit.
    """

    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 0
    attention: str | None = None
    budget_bytes: int | None = None


def open_device(settings: DeviceSettings) -> tuple[torch.device, torch.dtype]:
    """The device and dtype, ready for inference.

    Raises:
        SettingsError: no such device here, or no such dtype.
    """
    import torch

    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise SettingsError(f"REEL_DEVICE={settings.device}: want cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise SettingsError(f"REEL_DEVICE={settings.device}: torch sees {found} CUDA devices")
    elif device.type != "cpu":
        raise SettingsError(f"REEL_DEVICE={settings.device}: want cpu, cuda or cuda:N")
    dtype = getattr(torch, settings.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise SettingsError(f"REEL_DTYPE={settings.dtype}: no such type")
    return device, dtype


def device_kind(settings: DeviceSettings) -> str:
    """What costs depend on, beside the job: `cpu` or the GPU's name, and the dtype."""
    name = settings.device
    if name.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(name)
    return f"{name} {settings.dtype}"


#: What allocators say; on the CPU, and from cuBLAS and cuDNN, it is a plain RuntimeError.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_DEVICE_FAILED = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error")


def choose_attention(transformer: Any, name: str | None) -> None:
    """Have a diffusers model attend by that backend.

    Raises:
        SettingsError: no such backend, its package is missing here, or it would be downloaded: no
            code comes into a worker that was not installed with it.
    """
    if name is None:
        return
    if name.endswith("_hub"):
        raise SettingsError(f"REEL_ATTENTION={name}: kernels are not downloaded; install a package")
    try:
        transformer.set_attention_backend(name)
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"REEL_ATTENTION={name}: {error}") from error


def open_budget(settings: DeviceSettings) -> MemoryBudget | None:
    """The limit that was asked for."""
    if settings.budget_bytes is None:
        return None
    from workers.memory_budget import MemoryBudget

    return MemoryBudget(settings.budget_bytes)


@contextmanager
def device_faults(
    device: torch.device, num_rows: int, shape: str, budget: MemoryBudget | None = None
) -> Iterator[None]:
    """What goes wrong on a device in here is told by its fate; anything else passes through.

    Raises:
        OutOfMemory: with shape, rows, free and total bytes as evidence.
        SickHost: `device_failed`; the device will not work again before somebody looks at it.
    """
    try:
        with nullcontext() if budget is None else budget:
            yield
    except RuntimeError as error:  # torch.OutOfMemoryError and AcceleratorError are such
        text = str(error)
        if any(sign in text for sign in _NO_MEMORY):
            free, total = memory_bytes(device)
            evidence = {
                "shape": shape,
                "rows": str(num_rows),
                "device": str(device),
                "free-bytes": str(free),
                "total-bytes": str(total),
            }
            raise OutOfMemory(f"no memory for {num_rows} rows of {shape}", evidence) from error
        if any(sign in text for sign in _DEVICE_FAILED):
            first_line = text.partition("\n")[0]
            raise SickHost(f"{device}: {first_line[:200]}", reason_code="device_failed") from error
        raise


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(free, total) memory of a device, in bytes; of the host for the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
