"""Wan (text to video): latent shape, noise, noise schedule and prediction, as in WanPipeline.

Wan 2.2 has two experts of equal shape: one for the noisy timesteps, another below the boundary.
All state of a request is an argument; nothing of it stays here, so requests can share a forward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.records import Job
from workers.torch_device import choose_attention

if TYPE_CHECKING:
    import torch
    from torch import Tensor


SECOND_EXPERT = "transformer_2"


class WanFamily:
    """Wan's transformers and their scheduler, loaded from a WanPipeline folder."""

    def __init__(
        self,
        model_dir: Path,
        device: torch.device,
        dtype: torch.dtype,
        attention: str | None = None,
    ) -> None:
        """Load the transformers and the scheduler's configuration, and nothing else.

        Raises:
            SettingsError: `choose_attention`.
        """
        import diffusers

        index = json.loads((model_dir / "model_index.json").read_text())
        self._boundary_ratio: float | None = index.get("boundary_ratio")
        folders = (
            ["transformer"] if self._boundary_ratio is None else ["transformer", SECOND_EXPERT]
        )
        self._device = device
        self._experts = [_load(model_dir, each, device, dtype) for each in folders]
        for each in self._experts:
            choose_attention(each, attention)
        self._transformer = self._experts[0]
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

    def expert(self, timestep: Tensor) -> int:
        """Which transformer predicts at a timestep: 1 below the boundary, where there are two."""
        if self._boundary_ratio is None:
            return 0
        boundary = self._boundary_ratio * self._scheduler_prototype.config.num_train_timesteps
        return int(timestep < boundary)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text_embeds: Tensor, expert: int
    ) -> Tensor:
        """One forward for rows at any timesteps of one expert.

        Args:
            latents: (B, C, T, H, W) float32.
            timesteps: (B,).
            text_embeds: (B, text_pad_length, text_dim) float32.
            expert: 0 or 1, as `expert` says of each timestep.
        Returns:
            (B, C, T, H, W) in the transformer's dtype.
        """
        transformer = self._experts[expert]
        dtype = transformer.dtype
        prediction: Tensor = transformer(
            hidden_states=latents.to(dtype),
            timestep=timesteps.to(self._device),
            encoder_hidden_states=text_embeds.to(self._device, dtype),
            return_dict=False,
        )[0]
        return prediction


def _load(model_dir: Path, folder: str, device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import WanTransformer3DModel

    transformer: Any = WanTransformer3DModel.from_pretrained(
        model_dir, subfolder=folder, torch_dtype=dtype, local_files_only=True
    )
    return transformer.to(device).eval()
