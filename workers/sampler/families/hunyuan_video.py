"""HunyuanVideo, text to video (`HunyuanVideoPipeline`): two text encoders, masked text.

Most of its models are distilled for guidance: a request's guidance scale goes into the forward,
and a job is one row. Where reel.json fixes `embedded_guidance_scale`, or the transformer takes
none, guidance is by a negative prompt, as in the pipeline's `true_cfg_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Job
from streams.blobs.tensors import Expected
from workers.sampler.families.base import (
    Denoiser,
    Encoder,
    Family,
    Geometry,
    LatentDecoder,
    Text,
    read_config,
)
from workers.torch_device import Place

if TYPE_CHECKING:
    from torch import Tensor

    from workers.models.card import ModelCard

_PIPELINE_MULTIPLE_PX = 16  # HunyuanVideoPipeline.check_inputs
_FIXED = "embedded_guidance_scale"


class HunyuanVideo(Family):
    """Implements `Family` for HunyuanVideoPipeline folders."""

    name = "hunyuan_video"
    pipeline = "HunyuanVideoPipeline"
    defaults: Mapping[str, Any] = MappingProxyType(
        {
            "text_pad_length": 256,
            "num_frames": 129,
            "width_px": 1280,
            "height_px": 720,
            "fps": 24,
            "guidance_scale": 6.0,
        }
    )
    parameters: Mapping[str, float] = MappingProxyType({_FIXED: 0.0})

    def components(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """Two text encoders."""
        del index
        texts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        return (*texts, "transformer", "vae", "scheduler")

    def geometry(self, folder: Path) -> Geometry:
        """From VAE and transformer."""
        vae = read_config(folder, "vae/config.json")
        transformer = read_config(folder, "transformer/config.json")
        scale_px = vae["spatial_compression_ratio"]
        frame_stride = vae["temporal_compression_ratio"]
        return Geometry(
            num_channels=transformer["in_channels"],
            scale_px=scale_px,
            frame_stride=frame_stride,
            size_multiple_px=math.lcm(_PIPELINE_MULTIPLE_PX, scale_px * transformer["patch_size"]),
            frame_multiple=frame_stride,
        )

    def is_guidance_embedded(self, folder: Path, said: Mapping[str, Any]) -> bool:
        """Whether the transformer takes a scale, and reel.json does not fix it."""
        takes_one = read_config(folder, "transformer/config.json")["guidance_embeds"]
        return bool(takes_one) and _FIXED not in said

    def encoder(self, folder: Path, place: Place, card: ModelCard) -> Encoder:
        """Of prompts: Llama, and CLIP's pooled output."""
        return HunyuanVideoEncoder(folder, place, card)

    def denoiser(self, folder: Path, place: Place, card: ModelCard) -> HunyuanVideoDenoiser:
        """Of latents."""
        return HunyuanVideoDenoiser(folder, place, card, self.geometry(folder))

    def decoder(self, folder: Path, place: Place, card: ModelCard) -> HunyuanVideoDecoder:
        """From latents to frames."""
        return HunyuanVideoDecoder(folder, place, card, self.geometry(folder))


class HunyuanVideoEncoder(Encoder):
    """Prompts by `HunyuanVideoPipeline.encode_prompt`."""

    def encode(self, prompts: list[str]) -> Text:
        """Embeddings and mask (B, text_pad_length, ...), and one pooled embedding (B, dim)."""
        embeds, pooled, mask = self._pipeline.encode_prompt(
            prompts, max_sequence_length=self._pad_length, device=self._device
        )
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "prompt_attention_mask": mask.bool(),
        }


class HunyuanVideoDenoiser(Denoiser):
    """HunyuanVideo's transformer and its scheduler."""

    def text_layout(self) -> Expected:
        """Embeddings, which of them are no padding, and the pooled one."""
        config, length = self._transformer.config, self._card.text_pad_length
        return {
            "prompt_embeds": (np.float32, (length, int(config.text_embed_dim))),
            "pooled_prompt_embeds": (np.float32, (int(config.pooled_projection_dim),)),
            "prompt_attention_mask": (np.bool_, (length,)),
        }

    def _set_timesteps(self, schedule: Any, job: Job) -> None:
        sigmas = np.linspace(1.0, 0.0, job.num_inference_steps + 1)[:-1]
        schedule.set_timesteps(sigmas=sigmas, device=self._place.device)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """As `Denoiser.predict`."""
        import torch

        del expert
        transformer = self._transformer
        dtype, guidance = self._dtype, None
        if transformer.config.guidance_embeds:
            fixed = self._card.parameters[_FIXED]
            scales = [fixed or each.guidance_scale for each in jobs]
            guidance = torch.tensor(scales, dtype=dtype, device=latents.device) * 1000.0
        prediction: Tensor = transformer(
            hidden_states=latents.to(dtype),
            timestep=timesteps.to(latents.dtype),
            encoder_hidden_states=text["prompt_embeds"].to(dtype),
            encoder_attention_mask=text["prompt_attention_mask"].to(dtype),
            pooled_projections=text["pooled_prompt_embeds"].to(dtype),
            guidance=guidance,
            return_dict=False,
        )[0]
        return prediction


class HunyuanVideoDecoder(LatentDecoder):
    """AutoencoderKLHunyuanVideo; its own `decode` takes long clips in overlapping windows."""

    def _scaled(self, latents: Tensor) -> Tensor:
        scaling_factor: float = self._vae.config.scaling_factor
        return latents.to(self._place.dtype) / scaling_factor
