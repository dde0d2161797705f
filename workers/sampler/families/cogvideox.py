"""CogVideoX, text to video (`CogVideoXPipeline`): frames before channels, all 226 text positions.

Its schedulers are its own, DDIM and DPM; the latter draws noise at every step. Version 1.5 makes
latent frames in pairs: a job whose frames do not fill them gets some before its first, and loses
them when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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


class CogVideoX(Family):
    """Implements `Family` for CogVideoXPipeline folders."""

    name = "cogvideox"
    pipeline = "CogVideoXPipeline"
    defaults: Mapping[str, Any] = MappingProxyType(
        {
            "text_pad_length": 226,
            "num_frames": 49,
            "width_px": 720,
            "height_px": 480,
            "fps": 8,
            "guidance_scale": 6.0,
        }
    )
    #: 1: the guidance scale follows the timestep, as the DPM scheduler's models were meant to.
    parameters: Mapping[str, float] = MappingProxyType({"dynamic_guidance": 0.0})

    def components(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """One of each."""
        del index
        return ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")

    def geometry(self, folder: Path) -> Geometry:
        """From VAE and transformer."""
        vae = read_config(folder, "vae/config.json")
        transformer = read_config(folder, "transformer/config.json")
        scale_px = 2 ** (len(vae["block_out_channels"]) - 1)
        frame_stride = int(vae["temporal_compression_ratio"])
        has_largest = transformer["patch_size_t"] is not None  # 1.5: its grid is cut from that
        return Geometry(
            num_channels=transformer["in_channels"],
            scale_px=scale_px,
            frame_stride=frame_stride,
            size_multiple_px=math.lcm(8, scale_px * transformer["patch_size"]),
            # An even number of latent frames decodes to more frames than were asked for.
            frame_multiple=2 * frame_stride,
            max_height_px=transformer["sample_height"] * scale_px if has_largest else None,
            max_width_px=transformer["sample_width"] * scale_px if has_largest else None,
        )

    def encoder(self, folder: Path, place: Place, card: ModelCard) -> Encoder:
        """Of prompts: T5."""
        return CogVideoXEncoder(folder, place, card)

    def denoiser(self, folder: Path, place: Place, card: ModelCard) -> CogVideoXDenoiser:
        """Of latents."""
        return CogVideoXDenoiser(folder, place, card, self.geometry(folder))

    def decoder(self, folder: Path, place: Place, card: ModelCard) -> CogVideoXDecoder:
        """From latents to frames."""
        return CogVideoXDecoder(folder, place, card, self.geometry(folder))


class CogVideoXEncoder(Encoder):
    """Prompts by `CogVideoXPipeline.encode_prompt`."""

    def encode(self, prompts: list[str]) -> Text:
        """`prompt_embeds` (B, text_pad_length, dim), the padding's among them."""
        embeds, _ = self._pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self._pad_length,
            device=self._device,
        )
        return {"prompt_embeds": embeds}


class CogVideoXDenoiser(Denoiser):
    """CogVideoX's transformer and its scheduler. Latents are (1, T, C, H, W)."""

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        super().__init__(folder, place, card, geometry)
        self._rotary = lru_cache(maxsize=16)(self._rotary_embedding)

    def text_layout(self) -> Expected:
        """Embeddings only: padding is attended to."""
        dim = int(self._transformer.config.text_embed_dim)
        return {"prompt_embeds": (np.float32, (self._card.text_pad_length, dim))}

    def _num_extra_frames(self, job: Job) -> int:
        """Latent frames that a job lacks to fill its last patch in time."""
        patch_t = self._transformer.config.patch_size_t
        num_frames = self._geometry.latent_shape(job)[1]
        return 0 if patch_t is None else -num_frames % patch_t

    def prepare_latents(self, job: Job) -> Tensor:
        """Initial noise, (1, T, C, H, W) float32."""
        c, t, h, w = self._geometry.latent_shape(job)
        shape = (1, t + self._num_extra_frames(job), c, h, w)
        sigma: float = self._prototype.init_noise_sigma
        return self._noise(shape, job.seed) * sigma

    def final_latents(self, latents: Tensor, job: Job) -> Tensor:
        """As `Denoiser.final_latents`, without what filled a patch."""
        return latents[0, self._num_extra_frames(job) :].transpose(0, 1)

    def guidance_scale(self, job: Job, timestep: Tensor) -> float:
        """The job's, or as `CogVideoXPipeline` has it with `use_dynamic_cfg`."""
        if not self._card.parameters["dynamic_guidance"]:
            return job.guidance_scale
        steps = job.num_inference_steps
        phase = ((steps - timestep.item()) / steps) ** 5.0
        return 1 + job.guidance_scale * (1 - math.cos(math.pi * phase)) / 2

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """As `Denoiser.predict`."""
        del expert, jobs
        transformer = self._transformer
        rotary = None
        if transformer.config.use_rotary_positional_embeddings:
            _, num_frames, _, height, width = latents.shape
            rotary = self._rotary(num_frames, height, width)
        prediction: Tensor = transformer(
            hidden_states=latents.to(self._dtype),
            encoder_hidden_states=text["prompt_embeds"].to(self._dtype),
            timestep=timesteps,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return prediction

    def _rotary_embedding(self, num_frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """As `CogVideoXPipeline` prepares it for latents of that size."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import (
            get_resize_crop_region_for_grid,
        )

        config = self._transformer.config
        patch, patch_t = config.patch_size, config.patch_size_t
        grid = height // patch, width // patch
        base_height, base_width = config.sample_height // patch, config.sample_width // patch
        rest: dict[str, Any] = {
            "crops_coords": get_resize_crop_region_for_grid(grid, base_width, base_height),
            "temporal_size": num_frames,
        }
        if patch_t is not None:
            rest = {
                "crops_coords": None,
                "temporal_size": num_frames // patch_t,
                "grid_type": "slice",
                "max_size": (base_height, base_width),
            }
        cosines, sines = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim, grid_size=grid, device=self._place.device, **rest
        )
        return cosines, sines


class CogVideoXDecoder(LatentDecoder):
    """AutoencoderKLCogVideoX driven two latent frames at a time, as its own `decode` does inside.

    Its cache of convolutions is a value, so that frames can go before the next are decoded.
    """

    def _scaled(self, latents: Tensor) -> Tensor:
        scaling_factor: float = self._vae.config.scaling_factor
        return latents.to(self._place.dtype) / scaling_factor

    def _pieces(self, latents: Tensor, job: Job) -> Iterator[npt.NDArray[Any]]:
        del job
        vae, scaled = self._vae, self._scaled(latents)
        window, num_frames = vae.num_latent_frames_batch_size, scaled.shape[2]
        ends = range(window + num_frames % window, num_frames + 1, window)
        cache, begin = None, 0
        for end in ends if num_frames >= window else (num_frames,):
            hidden = scaled[:, :, begin:end]
            if vae.post_quant_conv is not None:
                hidden = vae.post_quant_conv(hidden)
            pixels, cache = vae.decoder(hidden, conv_cache=cache)
            yield from self._by_latent_frame(pixels, is_first=begin == 0)
            begin = end
