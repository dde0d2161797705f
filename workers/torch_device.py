"""The device that a stage computes on, checked once; torch is imported here at load only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.errors import SettingsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What a deployment asks for: `cpu`, `cuda` or `cuda:N`; a dtype's name; 0 = torch's choice."""

    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 0


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
