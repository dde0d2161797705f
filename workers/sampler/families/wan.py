"""Wan, text to video (`WanPipeline`): 2.1, and 2.2's two experts of equal shape.

One expert predicts at the noisy timesteps, another below the boundary. The text is attended to with
its padding, so its length belongs to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
    as_uint8,
    read_config,
)
from workers.torch_device import Place

if TYPE_CHECKING:
    from torch import Tensor

    from workers.models.card import ModelCard

SECOND_EXPERT = "transformer_2"


class Wan(Family):
    """Implements `Family` for WanPipeline folders."""

    name = "wan"
    pipeline = "WanPipeline"
    defaults: Mapping[str, Any] = MappingProxyType(
        {
            "text_pad_length": 512,
            "num_frames": 81,
            "width_px": 832,
            "height_px": 480,
            "fps": 16,
            "guidance_scale": 5.0,
        }
    )
    parameters: Mapping[str, float] = MappingProxyType({})

    def components(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """Two transformers where there is a boundary.

        Raises:
            SettingsError: its timesteps differ by token.
        """
        if index.get("expand_timesteps"):
            raise SettingsError("a Wan 2.2 whose timesteps differ by token is not served")
        experts = () if index.get("boundary_ratio") is None else (SECOND_EXPERT,)
        return ("tokenizer", "text_encoder", "transformer", *experts, "vae", "scheduler")

    def geometry(self, folder: Path) -> Geometry:
        """From VAE and transformer."""
        vae = read_config(folder, "vae/config.json")
        transformer = read_config(folder, "transformer/config.json")
        scale_px = vae.get("scale_factor_spatial", 8)
        frame_stride = vae.get("scale_factor_temporal", 4)
        return Geometry(
            num_channels=transformer.get("in_channels", 16),
            scale_px=scale_px,
            frame_stride=frame_stride,
            size_multiple_px=scale_px * transformer.get("patch_size", [1, 2, 2])[1],
            frame_multiple=frame_stride,
        )

    def encoder(self, folder: Path, place: Place, card: ModelCard) -> Encoder:
        """Of prompts: UMT5."""
        return WanEncoder(folder, place, card)

    def denoiser(self, folder: Path, place: Place, card: ModelCard) -> WanDenoiser:
        """Of latents."""
        return WanDenoiser(folder, place, card, self.geometry(folder))

    def decoder(self, folder: Path, place: Place, card: ModelCard) -> WanDecoder:
        """From latents to frames."""
        return WanDecoder(folder, place, card, self.geometry(folder))


class WanEncoder(Encoder):
    """Prompts by `WanPipeline.encode_prompt`."""

    without = ("transformer", SECOND_EXPERT, "vae")

    def encode(self, prompts: list[str]) -> Text:
        """`prompt_embeds` (B, text_pad_length, text_dim)."""
        embeds, _ = self._pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self._pad_length,
            device=self._device,
        )
        return {"prompt_embeds": embeds}


class WanDenoiser(Denoiser):
    """Wan's transformers and their scheduler."""

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        super().__init__(folder, place, card, geometry)
        ratio: float | None = read_config(folder, "model_index.json").get("boundary_ratio")
        self._boundary: float | None = None
        if ratio is not None:
            self._experts.append(self._load(folder, SECOND_EXPERT))
            self._boundary = ratio * self._prototype.config.num_train_timesteps

    def text_layout(self) -> Expected:
        """Embeddings only: padding is attended to."""
        dim = int(self._transformer.config.text_dim)
        return {"prompt_embeds": (np.float32, (self._card.text_pad_length, dim))}

    def expert(self, timestep: Tensor) -> int:
        """1 below the boundary, where there are two."""
        return 0 if self._boundary is None else int(timestep < self._boundary)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """As `Denoiser.predict`."""
        del jobs
        transformer = self._experts[expert]
        prediction: Tensor = transformer(
            hidden_states=latents.to(self._dtype),
            timestep=timesteps,
            encoder_hidden_states=text["prompt_embeds"].to(self._dtype),
            return_dict=False,
        )[0]
        return prediction


class WanDecoder(LatentDecoder):
    """AutoencoderKLWan driven a latent frame at a time, so that no clip is ever held whole.

    The module's own `decode` keeps its cache on the module: two decodes at once spoil each other,
    and all frames are held until the last. Here each decode has a cache of its own.
    """

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        super().__init__(folder, place, card, geometry)
        import torch
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self._num_caches = sum(
            isinstance(module, WanCausalConv3d) for module in self._vae.decoder.modules()
        )
        config = self._vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean, std = (
            torch.tensor(each).view(shape).to(place.device, place.dtype)
            for each in (config.latents_mean, config.latents_std)
        )
        self._inverse_std = 1.0 / std

    def _scaled(self, latents: Tensor) -> Tensor:
        return latents.to(self._place.dtype) / self._inverse_std + self._mean

    def _pieces(self, latents: Tensor, job: Job) -> Iterator[npt.NDArray[Any]]:
        del job
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae = self._vae
        hidden = vae.post_quant_conv(self._scaled(latents))
        cache: list[Tensor | str | None] = [None] * self._num_caches
        for index in range(hidden.shape[2]):
            pixels = vae.decoder(
                hidden[:, :, index : index + 1],
                feat_cache=cache,
                feat_idx=[0],
                first_chunk=index == 0,
            )
            if vae.config.patch_size is not None:
                pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
            yield as_uint8(pixels[0])
