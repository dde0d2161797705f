"""AutoencoderKLWan driven a latent frame at a time, so that no clip is ever held whole.

The module's own `decode` keeps its cache on the module: two decodes at once spoil each other, and
all frames are held until the last. Here each decode has a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class WanVae:
    """The Wan VAE's decoder, loaded from a WanPipeline folder."""

    def __init__(self, model_dir: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load the VAE, and nothing else of the model."""
        import torch
        from diffusers import AutoencoderKLWan
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self._vae: Any = AutoencoderKLWan.from_pretrained(
            model_dir, subfolder="vae", torch_dtype=dtype, local_files_only=True
        ).to(device)
        self._vae.eval()
        self._device, self._dtype = device, dtype
        self._num_caches = sum(
            isinstance(module, WanCausalConv3d) for module in self._vae.decoder.modules()
        )
        config = self._vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape).to(device, dtype)
        self._inverse_std = 1.0 / torch.tensor(config.latents_std).view(shape).to(device, dtype)

    @property
    def num_channels(self) -> int:
        """Channels of a latent."""
        return int(self._vae.config.z_dim)

    @property
    def scale_spatial(self) -> int:
        """Pixels of a latent cell's side."""
        return int(self._vae.config.scale_factor_spatial)

    def frames(self, latents: Tensor) -> Iterator[npt.NDArray[Any]]:
        """Decode one request's latents, a latent frame at a time.

        Args:
            latents: (C, T, H, W) float32, normalised.
        Yields:
            T arrays (f, height_px, width_px, 3) uint8; f is 1 first, then the temporal stride.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae = self._vae
        scaled = latents[None].to(self._device, self._dtype) / self._inverse_std + self._mean
        hidden = vae.post_quant_conv(scaled)
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
            yield _as_uint8(pixels[0])


def _as_uint8(pixels: Tensor) -> npt.NDArray[Any]:
    """(3, f, H, W) in [-1, 1] -> (f, H, W, 3) uint8, rounded as diffusers' VideoProcessor does."""
    import torch

    unit = (pixels.clamp(-1.0, 1.0) * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return (unit.float() * 255).round().to(torch.uint8).cpu().contiguous().numpy()
