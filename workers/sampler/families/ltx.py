"""LTX-Video, text to video (`LTXPipeline`): packed latents, masked text, a shift by length.

The frame rate goes into every forward's rotary embedding, so it is a constant of a batch. Where the
VAE is conditioned on a timestep, decoding draws on from the noise that the job began with.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Job
from streams.blobs.tensors import Expected
from streams.errors import SettingsError
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

_PIPELINE_MULTIPLE_PX = 32  # LTXPipeline.check_inputs, whatever the VAE


class Ltx(Family):
    """Implements `Family` for LTXPipeline folders."""

    name = "ltx"
    pipeline = "LTXPipeline"
    defaults: Mapping[str, Any] = MappingProxyType(
        {
            "text_pad_length": 128,
            "num_frames": 161,
            "width_px": 704,
            "height_px": 512,
            "fps": 25,
            "guidance_scale": 3.0,
            "min_num_inference_steps": 2,  # its schedules are stretched between two ends
        }
    )
    #: Of a VAE with `timestep_conditioning`; no noise scale of its own: as the timestep.
    parameters: Mapping[str, float] = MappingProxyType(
        {"decode_timestep": 0.0, "decode_noise_scale": -1.0}
    )

    def components(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """One of each."""
        del index
        return ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")

    def geometry(self, folder: Path) -> Geometry:
        """From VAE and transformer.

        Raises:
            SettingsError: patches of several cells.
        """
        vae = read_config(folder, "vae/config.json")
        transformer = read_config(folder, "transformer/config.json")
        if (transformer["patch_size"], transformer["patch_size_t"]) != (1, 1):
            raise SettingsError(f"{folder}: LTXPipeline itself serves no patches but of 1")
        halvings = 2 ** sum(vae["spatio_temporal_scaling"])
        scale_px = vae.get("spatial_compression_ratio") or vae["patch_size"] * halvings
        frame_stride = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * halvings
        return Geometry(
            num_channels=transformer["in_channels"],
            scale_px=scale_px,
            frame_stride=frame_stride,
            size_multiple_px=math.lcm(_PIPELINE_MULTIPLE_PX, scale_px),
            frame_multiple=frame_stride,
        )

    def encoder(self, folder: Path, place: Place, card: ModelCard) -> Encoder:
        """Of prompts: T5."""
        return LtxEncoder(folder, place, card)

    def denoiser(self, folder: Path, place: Place, card: ModelCard) -> LtxDenoiser:
        """Of latents."""
        return LtxDenoiser(folder, place, card, self.geometry(folder))

    def decoder(self, folder: Path, place: Place, card: ModelCard) -> LtxDecoder:
        """From latents to frames."""
        return LtxDecoder(folder, place, card, self.geometry(folder))


class LtxEncoder(Encoder):
    """Prompts by `LTXPipeline.encode_prompt`."""

    def encode(self, prompts: list[str]) -> Text:
        """`prompt_embeds` (B, text_pad_length, dim), `prompt_attention_mask` (B, length) bool."""
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self._pad_length,
            device=self._device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


class LtxDenoiser(Denoiser):
    """LTX's transformer and its scheduler. Latents are packed: a token is a latent cell."""

    def text_layout(self) -> Expected:
        """Embeddings and which of them are no padding."""
        length = self._card.text_pad_length
        dim = int(self._transformer.config.caption_channels)
        return {
            "prompt_embeds": (np.float32, (length, dim)),
            "prompt_attention_mask": (np.bool_, (length,)),
        }

    def prepare_latents(self, job: Job) -> Tensor:
        """As `Denoiser.prepare_latents`, packed: (1, T * H * W, C)."""
        return super().prepare_latents(job).flatten(2).transpose(1, 2)

    def final_latents(self, latents: Tensor, job: Job) -> Tensor:
        """As `Denoiser.final_latents`, unpacked."""
        return latents[0].transpose(0, 1).reshape(self._geometry.latent_shape(job))

    def _set_timesteps(self, schedule: Any, job: Job) -> None:
        """`LTXPipeline`'s sigmas, shifted by the number of latent cells."""
        config = self._prototype.config
        _, *shape = self._geometry.latent_shape(job)
        shortest, longest = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (longest - shortest)
        steps = job.num_inference_steps
        schedule.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=config.base_shift + slope * (math.prod(shape) - shortest),
            device=self._place.device,
        )

    def constants(self, job: Job) -> Hashable:
        """The frame rate."""
        return job.fps

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """As `Denoiser.predict`."""
        del expert
        transformer, geometry = self._transformer, self._geometry
        _, num_frames, height, width = geometry.latent_shape(jobs[0])
        prediction: Tensor = transformer(
            hidden_states=latents.to(self._dtype),
            encoder_hidden_states=text["prompt_embeds"].to(self._dtype),
            timestep=timesteps,
            encoder_attention_mask=text["prompt_attention_mask"],
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=(
                geometry.frame_stride / jobs[0].fps, geometry.scale_px, geometry.scale_px,
            ),
            return_dict=False,
        )[0]  # fmt: skip
        return prediction


class LtxDecoder(LatentDecoder):
    """AutoencoderKLLTXVideo, conditioned on a timestep where it was trained so."""

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        super().__init__(folder, place, card, geometry)
        self._timestep = card.parameters["decode_timestep"]
        scale = card.parameters["decode_noise_scale"]
        self._noise_scale = self._timestep if scale < 0 else scale
        config = self._vae.config
        self._is_conditioned = bool(config.timestep_conditioning)
        self._draws_noise = any(config.decoder_inject_noise)

    def _scaled(self, latents: Tensor) -> Tensor:
        vae = self._vae
        std, mean = (
            each.view(1, -1, 1, 1, 1).to(latents) for each in (vae.latents_std, vae.latents_mean)
        )
        scaled: Tensor = latents * std / vae.config.scaling_factor + mean
        return scaled.to(self._place.dtype)

    def _decode(self, latents: Tensor, job: Job) -> Tensor:
        import torch

        vae, timestep = self._vae, None
        latents = self._scaled(latents)
        if self._is_conditioned:
            generator = torch.Generator("cpu").manual_seed(job.seed)
            torch.randn(latents.shape, generator=generator)  # what the job began with
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            scale = torch.tensor(self._noise_scale).to(latents)
            timestep = torch.tensor([self._timestep]).to(latents)
            latents = (1 - scale) * latents + scale * noise
        devices = [latents.device] if latents.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self._draws_noise):
            if self._draws_noise:  # by torch's global generator: the seed makes it repeatable
                torch.manual_seed(job.seed)
            pixels: Tensor = vae.decode(latents, timestep, return_dict=False)[0]
        return pixels
