"""Training the video autoencoder: first pictures, then short clips, then whole ones.

Straight on clips it collapses to the background; so does a loss that gives the few pixels of the
shape no more weight than the many of the background. What the pictures taught is kept: the model
starts as one that treats each frame alone, and learns time from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.models.demo.shapes import DEFAULT_SIZE, Size, random_clip, random_scene
from workers.models.demo.training import Phase, Step, Training

if TYPE_CHECKING:
    from torch import Tensor

NUM_CHANNELS = 16
#: 2x2 pixels become 12 channels first (as in Wan 2.2), which makes it four times as fast.
CONFIG: Mapping[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": NUM_CHANNELS,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
}
PHASES = (
    Phase("pictures", 2200, 16, 1.5e-3, 3e-4),
    Phase("short clips", 400, 8, 6e-4, 4e-4),
    Phase("clips", 2200, 4, 5e-4, 2e-5),
)
_SIZES = {
    "pictures": Size(1, 64, 64),
    "short clips": Size(5, 64, 64),
    "clips": DEFAULT_SIZE,
}
_WIDE = Size(17, 96, 64)
_FOREGROUND_WEIGHT = 6.0
#: Pixels around the shape that weigh as much as it does: what tells a circle from a square lies
#: half outside, and where errors there are cheap, circles grow corners.
_RING_PX = 3
_KL_WEIGHT = 2e-4


def new_vae(seed: int) -> Any:
    """An untrained AutoencoderKLWan."""
    import torch
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(**CONFIG)
    _look_at_one_frame(vae)
    return vae


def _look_at_one_frame(vae: Any) -> None:
    """Set the weights on past frames to zero, and those between frame rates to copying.

    So an untrained model, and one that has only seen pictures, which leave these weights alone,
    makes a clip from its pictures, instead of noise (the "inflation" of image models to video).
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    with torch.no_grad():
        for name, layer in vae.named_modules():
            if not isinstance(layer, WanCausalConv3d) or layer.kernel_size[0] == 1:
                continue
            layer.weight[:, :, :-1] = 0.0
            if name.endswith("time_conv"):
                same = torch.eye(layer.in_channels)
                num_copies = layer.out_channels // layer.in_channels
                layer.weight[:, :, -1, 0, 0] = same.repeat(num_copies, 1)
                layer.bias.zero_()


def train_vae(folder: Path, seed: int) -> Any:
    """The trained AutoencoderKLWan; goes on from the checkpoint in `folder`."""
    vae = new_vae(seed)

    def loss_of(step: Step) -> tuple[Tensor, Mapping[str, float]]:
        return _loss(vae, step, seed)

    Training("vae", vae, folder, PHASES).run(loss_of)
    return vae


def as_pixels(frames: Any) -> Tensor:
    """(..., F, H, W, 3) uint8 -> (..., 3, F, H, W) float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1.0


def encode(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the latents, not normalised.

    Args:
        pixels: (B, 3, F, H, W) in [-1, 1].
    Returns:
        Two of (B, C, T, H / 8, W / 8).
    """
    posterior = vae.encode(pixels).latent_dist
    return posterior.mean, posterior.logvar


def decode(vae: Any, latents: Tensor) -> Tensor:
    """`vae.decode` without its clamp, which has no gradient where a colour overshoots."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = [
        vae.decoder(
            hidden[:, :, at : at + 1],
            feat_cache=vae._feat_map,
            feat_idx=[0],
            first_chunk=at == 0,
        )
        for at in range(hidden.shape[2])
    ]
    vae.clear_cache()
    pixels: Tensor = unpatchify(torch.cat(chunks, 2), vae.config.patch_size)
    return pixels


def _loss(vae: Any, step: Step, seed: int) -> tuple[Tensor, Mapping[str, float]]:
    """Colour error, the shape's pixels weighted, and the pull of the latents to a normal law."""
    import torch

    rng = np.random.default_rng([seed, step.number])
    size = _SIZES[step.phase.name]
    batch_size = step.phase.batch_size
    if size == DEFAULT_SIZE and step.number % 8 == 0:
        size, batch_size = _WIDE, max(1, batch_size * 3 // 4)
    clips = [random_clip(random_scene(rng), size, rng) for _ in range(batch_size)]
    pixels = as_pixels(np.stack([frames for frames, _ in clips]))
    mask = torch.from_numpy(np.stack([coverage for _, coverage in clips]))[:, None]
    mean, logvar = encode(vae, pixels)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step.number)
    noise = torch.randn(mean.shape, generator=generator)
    error = (decode(vae, mean + torch.exp(0.5 * logvar) * noise) - pixels).abs()
    weighted = ((error + error**2) * (1 + _FOREGROUND_WEIGHT * _widened(mask))).mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss = weighted + _KL_WEIGHT * kl
    error, inside = error.detach(), mask.expand_as(error)
    return loss, {
        "loss": float(loss.detach()),
        "error inside the shape": float((error * inside).sum() / inside.sum()),
        "error": float(error.mean()),
        "kl": float(kl.detach()),
    }


def _widened(mask: Tensor) -> Tensor:
    """A mask, (B, 1, F, H, W), with `_RING_PX` around it."""
    import torch

    side = 2 * _RING_PX + 1
    wide: Tensor = torch.nn.functional.max_pool3d(
        mask, (1, side, side), stride=1, padding=(0, _RING_PX, _RING_PX)
    )
    return wide
