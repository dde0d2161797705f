"""The device that a stage computes on, checked once; torch is imported here at load only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streams.errors import FatalError, OutOfMemory, SettingsError, SickHost

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from workers.memory_budget import MemoryBudget


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What a deployment asks for: `cpu`, `cuda` or `cuda:N`; a dtype's name; 0 = torch's choice.

    `attention`: one of diffusers' attention backends, for transformers; None: torch's own choice.
    `compile_backend`: one of torch.compile's, for transformers; None: they run as they are.
    `offload`: what of a transformer is on the device at a time, `block` or `leaf`; None: all of it.
    `is_vae_tiled`: large frames are decoded in tiles, always.
    `budget_bytes`: what forwards may hold on the CPU (workers/memory_budget.py); None: no limit.
    """

    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 0
    attention: str | None = None
    compile_backend: str | None = None
    offload: str | None = None
    is_vae_tiled: bool = False
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A device that is there, and how a model is to compute on it."""

    device: torch.device
    dtype: torch.dtype
    settings: DeviceSettings = DeviceSettings()


def open_place(settings: DeviceSettings) -> Place:
    """Where a model goes.

    Raises:
        SettingsError: `open_device`.
    """
    return Place(*open_device(settings), settings)


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


def on_device(
    arrays: Mapping[str, npt.NDArray[Any]], device: torch.device
) -> dict[str, torch.Tensor]:
    """One row of each, (1, ...)."""
    import torch

    return {name: torch.from_numpy(each)[None].to(device) for name, each in arrays.items()}


#: What allocators say; on the CPU, and from cuBLAS and cuDNN, it is a plain RuntimeError.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_DEVICE_FAILED = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error")
#: What a kernel may do by what it was given. CUDA ends the process's context for it: every later
#: call fails, whoever's it is. In a message's first line; below it torch speaks of asserts always.
_CONTEXT_LOST = (
    "device-side assert triggered",
    "illegal memory access was encountered",
    "illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "not supported on global/shared address space",
    "unspecified launch failure",
    "launch timed out and was terminated",
)


def install(transformer: Any, place: Place) -> Any:
    """Bring a diffusers transformer to its place, by diffusers' own switches.

    Raises:
        SettingsError: an attention backend, a compiler or a way to offload that is not there.
    """
    import torch

    settings = place.settings
    transformer = transformer.eval()
    if settings.offload is None:
        transformer = transformer.to(place.device)
    elif settings.offload not in _OFFLOADS:
        raise SettingsError(f"REEL_OFFLOAD={settings.offload}: want {' or '.join(_OFFLOADS)}")
    elif settings.compile_backend is not None:
        raise SettingsError("REEL_OFFLOAD and REEL_COMPILE do not go together: choose one")
    else:
        transformer.enable_group_offload(
            onload_device=place.device,
            offload_device=torch.device("cpu"),
            offload_type=_OFFLOADS[settings.offload],
            num_blocks_per_group=1 if settings.offload == "block" else None,
            use_stream=place.device.type == "cuda",
        )
    _choose_attention(transformer, settings.attention)
    if settings.compile_backend is not None:
        _compile(transformer, settings.compile_backend)
    return transformer


_OFFLOADS = {"block": "block_level", "leaf": "leaf_level"}


def _choose_attention(transformer: Any, name: str | None) -> None:
    """Refuses what would be downloaded: no code comes into a worker but what was installed."""
    if name is None:
        return
    if name.endswith("_hub"):
        raise SettingsError(f"REEL_ATTENTION={name}: kernels are not downloaded; install a package")
    try:
        transformer.set_attention_backend(name)
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"REEL_ATTENTION={name}: {error}") from error


#: Of one block: numbers of rows, times the shapes that a model serves.
_MAX_GRAPHS = 128


def _compile(transformer: Any, backend: str) -> None:
    """Its repeated blocks, or all of it where diffusers does not say which are; when first used."""
    import torch

    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise SettingsError(f"REEL_COMPILE={backend}: want one of {', '.join(known)}")
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    if getattr(transformer, "_repeated_blocks", None):
        transformer.compile_repeated_blocks(backend=backend, dynamic=False)
    else:
        transformer.compile(backend=backend, dynamic=False)


def num_compiled_graphs() -> int:
    """In this process, so far."""
    import torch

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


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
        FatalError: `device_context_lost`; a row may have done it, so with rows inside the engine it
            counts as a crash, and another process may go on with the device.
        SickHost: `device_failed`; the device will not work again before somebody looks at it, or it
            refuses a shape: a job that is known to be good can tell.
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
        first_line = text.partition("\n")[0]
        said = f"{device}: {first_line[:200]}"
        if any(sign in first_line for sign in _CONTEXT_LOST):
            raise FatalError(said, reason_code="device_context_lost") from error
        if any(sign in text for sign in _DEVICE_FAILED):
            raise SickHost(said, reason_code="device_failed") from error
        raise


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps, and what only a collection frees: cycles hold tensors."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(free, total) memory of a device, in bytes; of the host for the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
