"""A tiny WanPipeline folder with seeded random weights: the right shapes, in seconds, offline.

What it shows is noise in motion; it exists so that the real code path runs anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.models.card import CARD_FILE

TEXT_PAD_LENGTH = 32
_DIM = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"

CARD: dict[str, Any] = {
    "name": "tiny",
    "text_pad_length": TEXT_PAD_LENGTH,
    "num_frames": 17,
    "width_px": 64,
    "height_px": 64,
    "fps": 8,
    "num_inference_steps": 8,
    "guidance_scale": 3.0,
    "max_num_frames": 81,
    "max_frame_px": 512 * 512,
    "max_num_inference_steps": 100,
}


def write_tiny_model(folder: Path, seed: int = 0, boundary_ratio: float | None = None) -> None:
    """Write the model; the same seed gives the same files, hence the same model version.

    Args:
        folder: made where missing; files of an older model in it are overwritten.
        seed: of the random weights.
        boundary_ratio: two experts, as Wan 2.2 has; the second from that part of the noise down.
    """
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = character_tokenizer()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4
            )
        )
        experts = [
            WanTransformer3DModel(
                num_attention_heads=4,
                attention_head_dim=16,
                in_channels=16,
                out_channels=16,
                text_dim=_DIM,
                freq_dim=64,
                ffn_dim=128,
                num_layers=2,
                rope_max_seq_len=64,
            ).eval()
            for _ in range(1 if boundary_ratio is None else 2)
        ]
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        transformer=experts[0],
        transformer_2=experts[1] if boundary_ratio is not None else None,
        boundary_ratio=boundary_ratio,
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / CARD_FILE).write_text(json.dumps(CARD, indent=2) + "\n")


def character_tokenizer() -> Any:
    """A character tokenizer in T5's own class, so that from_pretrained needs no network."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    vocab += [(letter, -4.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0)
