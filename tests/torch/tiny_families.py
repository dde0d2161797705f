"""Tiny models of every family, seeded random weights: folders that diffusers itself loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    T5Config,
    T5EncoderModel,
)

from workers.models.card import CARD_FILE
from workers.models.tiny import character_tokenizer, write_tiny_model

TEXT_PAD_LENGTH = 32
_DIM = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'- "


def _t5() -> dict[str, Any]:
    tokenizer = character_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config).eval()}


def ltx(*, is_conditioned: bool = False, draws_noise: bool = False) -> Any:
    """LTX; the VAE conditioned on a timestep, and drawing noise of its own, on request."""
    layers = 2
    return diffusers.LTXPipeline(
        **_t5(),
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=4,
            attention_head_dim=16,
            cross_attention_dim=64,
            num_layers=2,
            caption_channels=_DIM,
        ).eval(),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=16,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(layers,) * 5,
            decoder_inject_noise=(draws_noise,) * 5,
            timestep_conditioning=is_conditioned,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            shift_terminal=0.1,
        ),
    )  # fmt: skip


def cogvideox(*, scheduler: str = "CogVideoXDDIMScheduler", patch_t: int | None = None) -> Any:
    """CogVideoX 1.0, or 1.5 with patches in time; rotary embeddings as the larger models have."""
    return diffusers.CogVideoXPipeline(
        **_t5(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=16,
            out_channels=16,
            time_embed_dim=16,
            text_embed_dim=_DIM,
            num_layers=2,
            sample_width=16,
            sample_height=16,
            sample_frames=9,
            patch_size_t=patch_t,
            patch_bias=patch_t is None,
            max_text_seq_length=TEXT_PAD_LENGTH,
            use_rotary_positional_embeddings=True,
        ).eval(),
        vae=diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=16,
            layers_per_block=1,
            norm_num_groups=2,
        ).eval(),
        scheduler=getattr(diffusers, scheduler)(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0,
            timestep_spacing="trailing", beta_start=0.00085, beta_end=0.012,
            beta_schedule="scaled_linear", set_alpha_to_one=True,
        ),
    )  # fmt: skip


def hunyuan_video(*, guidance_embeds: bool = True) -> Any:
    """HunyuanVideo, distilled for guidance or not."""
    llama = _llama_tokenizer()
    letters = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in _LETTERS.strip():
        letters |= {letter: len(letters)}
        letters |= {f"{letter}</w>": len(letters)}
    return diffusers.HunyuanVideoPipeline(
        tokenizer=llama,
        text_encoder=LlamaModel(
            LlamaConfig(
                vocab_size=len(llama), hidden_size=_DIM, intermediate_size=64, num_hidden_layers=4,
                num_attention_heads=4, pad_token_id=0,
            )
        ).eval(),
        tokenizer_2=CLIPTokenizer(vocab=letters, merges=[], model_max_length=77),
        text_encoder_2=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(letters), hidden_size=_DIM, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1,
            )
        ).eval(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            guidance_embeds=guidance_embeds,
            text_embed_dim=_DIM,
            pooled_projection_dim=_DIM,
            rope_axes_dim=(2, 6, 8),
        ).eval(),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=16,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip


def _llama_tokenizer() -> Any:
    """Letters, and the pipeline's template in the few tokens that it cuts off again."""
    before, _, after = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")
    names = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(_LETTERS.replace(" ", "\u2581"))]
    rest = sorted({letter for letter in before + after if letter not in _LETTERS})
    vocab = {name: number for number, name in enumerate([*names, *rest])}
    parts = DEFAULT_PROMPT_TEMPLATE["crop_start"]
    edges = [len(before) * part // parts for part in range(parts + 1)]
    pieces = [before[begin:end] for begin, end in pairwise(edges)]
    return LlamaTokenizer(
        vocab=vocab, merges=[], unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=[*pieces, after], padding_side="right",
    )  # fmt: skip


def _with(name: str, **said: Any) -> dict[str, Any]:
    return {
        "name": name,
        "text_pad_length": TEXT_PAD_LENGTH,
        "num_frames": 9,
        "width_px": 64,
        "height_px": 64,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        **said,
    }


#: By the name of what is special in them: what makes the pipeline, and its card.
MODELS: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ltx": (ltx, _with("ltx")),
    "ltx-conditioned": (
        lambda: ltx(is_conditioned=True),
        _with("ltx-conditioned", decode_timestep=0.05, decode_noise_scale=0.025),
    ),
    "cogvideox-ddim": (cogvideox, _with("cogvideox-ddim")),
    "cogvideox-dpm-dynamic": (
        lambda: cogvideox(scheduler="CogVideoXDPMScheduler"),
        _with("cogvideox-dpm-dynamic", dynamic_guidance=1),
    ),
    "cogvideox-1.5": (
        lambda: cogvideox(scheduler="CogVideoXDPMScheduler", patch_t=2),
        _with("cogvideox-1.5"),
    ),
    "hunyuan-video": (hunyuan_video, _with("hunyuan-video")),
    "hunyuan-video-negative": (
        lambda: hunyuan_video(guidance_embeds=False),
        _with("hunyuan-video-negative"),
    ),
    "hunyuan-video-fixed": (
        hunyuan_video, _with("hunyuan-video-fixed", embedded_guidance_scale=6.0),
    ),
}  # fmt: skip

NAMES = ("wan", "wan-2.2", *MODELS)


def write_model(name: str, folder: Path) -> None:
    """Write the model of that name; the same files each time."""
    if name.startswith("wan"):
        write_tiny_model(folder, boundary_ratio=0.875 if name == "wan-2.2" else None)
        return
    make, card = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = make()
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / CARD_FILE).write_text(json.dumps(card))
