"""Training the transformer and its text encoder, together, on latents that were encoded once.

The text goes the way it goes when it is served: tokens, encoder, cut at its length, zeros up to
the pad length. Wan attends to those zeros, so their number belongs to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.models.demo.captions import new_tokenizer, random_caption
from workers.models.demo.shapes import DEFAULT_SIZE, SCENES, SIZES, Size, random_clip
from workers.models.demo.training import Phase, Step, Training
from workers.models.demo.vae import NUM_CHANNELS, as_pixels, encode

if TYPE_CHECKING:
    from torch import Tensor

TEXT_PAD_LENGTH = 32
TEXT_DIM = 64
CONFIG: Mapping[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": NUM_CHANNELS,
    "out_channels": NUM_CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 64,
    "ffn_dim": 384,
    "num_layers": 6,
    "rope_max_seq_len": 64,
}
PHASES = (
    Phase("latents", 4000, 32, 1.5e-3, 2e-5),
    Phase("latents again", 2600, 32, 1e-3, 1e-5),  # a warm restart: directions come late
)
_NUM_CLIPS: Mapping[Size, int] = {size: 2880 if size == DEFAULT_SIZE else 432 for size in SIZES}
_ENCODE_BATCH = 8
_NO_CAPTION = 0.12  # the share that is trained without one, for guidance
_SHIFT = 2.0  # more of the noisy timesteps, where the scene is decided


@dataclass(frozen=True, slots=True)
class LatentClips:
    """Encoded clips of one size.

    `latents` (N, C, T, H, W) float16, not normalised; `scenes` (N,), indices into SCENES.
    """

    latents: Tensor
    scenes: Tensor


def latent_clips(vae: Any, folder: Path, seed: int) -> Mapping[Size, LatentClips]:
    """The training data, encoded, from files in `folder` where they exist."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, size in enumerate(SIZES):
        name = f"latents-{size.num_frames}-{size.width_px}x{size.height_px}.safetensors"
        path = folder / name
        if not path.exists():
            latents, scenes = _encode_clips(vae, size, [seed, 1, number])
            partial = path.with_suffix(".partial")
            save_file({"latents": latents, "scenes": scenes}, partial)
            partial.replace(path)
        found[size] = LatentClips(**load_file(path))
    return found


def latent_statistics(clips: LatentClips) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel: the VAE's `latents_mean` and `latents_std`."""
    latents = clips.latents.float()
    return (
        [float(each) for each in latents.mean(dim=(0, 2, 3, 4))],
        [float(each) for each in latents.std(dim=(0, 2, 3, 4))],
    )


def new_models(seed: int, vocab_size: int) -> Any:
    """Untrained: a ModuleDict of `transformer` and `text_encoder`."""
    import torch
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_config = UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        models = {
            "transformer": WanTransformer3DModel(**CONFIG),
            "text_encoder": UMT5EncoderModel(text_config),
        }
        return torch.nn.ModuleDict(models)


def train_transformer(clips: Mapping[Size, LatentClips], folder: Path, seed: int) -> Any:
    """The trained ModuleDict; goes on from the checkpoint in `folder`."""
    import torch

    tokenizer = new_tokenizer()
    models = new_models(seed, len(tokenizer))
    shape = (1, NUM_CHANNELS, 1, 1, 1)
    mean, std = (torch.tensor(each).view(shape) for each in latent_statistics(clips[DEFAULT_SIZE]))

    def loss_of(step: Step) -> tuple[Tensor, Mapping[str, float]]:
        rng = np.random.default_rng([seed, 2, step.number])
        size = DEFAULT_SIZE if rng.random() < 0.64 else SIZES[int(rng.integers(1, len(SIZES)))]
        chosen = torch.from_numpy(rng.integers(len(clips[size].scenes), size=step.phase.batch_size))
        latents = (clips[size].latents[chosen].float() - mean) / std
        texts = [
            "" if rng.random() < _NO_CAPTION else random_caption(SCENES[int(scene)], rng)
            for scene in clips[size].scenes[chosen]
        ]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step.number)
        loss = _flow_loss(models, latents, encode_texts(models, tokenizer, texts), generator)
        return loss, {"loss": float(loss.detach())}

    Training("transformer", models, folder, PHASES, average_decay=0.997).run(loss_of)
    return models


def encode_texts(models: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(B, TEXT_PAD_LENGTH, TEXT_DIM), equal to `WanPipeline.encode_prompt` of clean texts."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=TEXT_PAD_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask
    states: Tensor = models["text_encoder"](tokens.input_ids, mask).last_hidden_state
    masked: Tensor = states * mask[..., None]
    return masked


def _flow_loss(models: Any, latents: Tensor, text_embeds: Tensor, generator: Any) -> Tensor:
    """Squared error of the predicted flow, noise - latents; latents (B, C, T, H, W) normalised."""
    import torch

    uniform = torch.rand(len(latents), generator=generator)
    sigma = _SHIFT * uniform / (1 + (_SHIFT - 1) * uniform)
    noise = torch.randn(latents.shape, generator=generator)
    at = sigma.view(-1, 1, 1, 1, 1)
    predicted = models["transformer"](
        hidden_states=(1 - at) * latents + at * noise,
        timestep=sigma * 1000,
        encoder_hidden_states=text_embeds,
        return_dict=False,
    )[0]
    loss: Tensor = torch.nn.functional.mse_loss(predicted, noise - latents)
    return loss


def _encode_clips(vae: Any, size: Size, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Every scene equally often, each clip another drawing."""
    import torch

    rng = np.random.default_rng(seed)
    scenes = np.arange(_NUM_CLIPS[size]) % len(SCENES)
    rng.shuffle(scenes)
    encoded = []
    with torch.inference_mode():
        for first in range(0, len(scenes), _ENCODE_BATCH):
            some = scenes[first : first + _ENCODE_BATCH]
            frames = np.stack([random_clip(SCENES[each], size, rng)[0] for each in some])
            encoded.append(encode(vae, as_pixels(frames))[0].half())
    return torch.cat(encoded), torch.from_numpy(scenes)
