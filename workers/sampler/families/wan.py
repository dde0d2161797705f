"""Wan (text to video): latent shape, noise, noise schedule and prediction, as in WanPipeline.

All state of a request is an argument; nothing of it stays here, so requests can share a forward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.records import Job

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class WanFamily:
    """The Wan transformer and its scheduler, loaded from a WanPipeline folder."""

    def __init__(self, model_dir: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load the transformer and the scheduler's configuration, and nothing else."""
        import diffusers
        from diffusers import WanTransformer3DModel

        self._device = device
        self._transformer: Any = WanTransformer3DModel.from_pretrained(
            model_dir, subfolder="transformer", torch_dtype=dtype, local_files_only=True
        ).to(device)
        self._transformer.eval()
        config = json.loads((model_dir / "scheduler" / "scheduler_config.json").read_text())
        scheduler_class: Any = getattr(diffusers, config["_class_name"])
        self._scheduler_prototype = scheduler_class.from_config(config)
        vae = json.loads((model_dir / "vae" / "config.json").read_text())  # only its geometry
        self._scale_spatial = vae.get("scale_factor_spatial", 8)
        self._scale_temporal = vae.get("scale_factor_temporal", 4)

    @property
    def text_dim(self) -> int:
        """Width of a text embedding."""
        return int(self._transformer.config.text_dim)

    @property
    def smallest_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the smallest latents that the transformer takes: one patch."""
        return (int(self._transformer.config.in_channels), *self._transformer.config.patch_size)

    def latent_shape(self, job: Job) -> tuple[int, int, int, int]:
        """(C, T, H, W) of a job's latents."""
        return (
            int(self._transformer.config.in_channels),
            (job.num_frames - 1) // self._scale_temporal + 1,
            job.height_px // self._scale_spatial,
            job.width_px // self._scale_spatial,
        )

    def prepare_latents(self, job: Job) -> Tensor:
        """Initial noise, (1, C, T, H, W) float32; drawn on the CPU, so alike on every device."""
        import torch

        generator = torch.Generator("cpu").manual_seed(job.seed)
        noise = torch.randn((1, *self.latent_shape(job)), generator=generator, dtype=torch.float32)
        return noise.to(self._device)

    def new_schedule(self, num_inference_steps: int) -> Any:
        """A scheduler of a request's own: `step` mutates it."""
        schedule = type(self._scheduler_prototype).from_config(self._scheduler_prototype.config)
        schedule.set_timesteps(num_inference_steps, device=self._device)
        schedule.set_begin_index(0)
        return schedule

    def predict(self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor) -> Tensor:
        """One forward for rows at any timesteps.

        Args:
            latents: (B, C, T, H, W) float32.
            timesteps: (B,).
            text_embeds: (B, text_pad_length, text_dim) float32.
        Returns:
            (B, C, T, H, W) in the transformer's dtype.
        """
        dtype = self._transformer.dtype
        prediction: Tensor = self._transformer(
            hidden_states=latents.to(dtype),
            timestep=timesteps.to(self._device),
            encoder_hidden_states=text_embeds.to(self._device, dtype),
            return_dict=False,
        )[0]
        return prediction
