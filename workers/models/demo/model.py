"""The model folder: what was trained, as a WanPipeline in fp16, with its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from workers.models.card import CARD_FILE
from workers.models.demo.captions import new_tokenizer
from workers.models.demo.shapes import DEFAULT_SIZE
from workers.models.demo.transformer import TEXT_PAD_LENGTH

CARD: Mapping[str, Any] = {
    "name": "demo",
    "text_pad_length": TEXT_PAD_LENGTH,
    "num_frames": DEFAULT_SIZE.num_frames,
    "width_px": DEFAULT_SIZE.width_px,
    "height_px": DEFAULT_SIZE.height_px,
    "fps": 8,
    "num_inference_steps": 20,
    "guidance_scale": 2.0,
    "max_num_frames": 81,
    "max_frame_px": 512 * 512,
    "max_num_inference_steps": 100,
}
_FLOW_SHIFT = 3.0


def demo_model_dir() -> Path:
    """The model that comes with the package."""
    return Path(str(files("workers.models.demo") / "weights"))


def write_model(
    folder: Path, vae: Any, models: Any, statistics: tuple[Sequence[float], Sequence[float]]
) -> None:
    """Write the model; a README.md that is there already stays.

    Args:
        folder: made where missing; files of an older model in it are overwritten.
        vae: AutoencoderKLWan.
        models: `transformer` and `text_encoder`.
        statistics: mean and standard deviation of the latents, per channel.
    """
    from diffusers import UniPCMultistepScheduler, WanPipeline

    mean, std = statistics
    vae.register_to_config(latents_mean=list(mean), latents_std=list(std))
    pipeline = WanPipeline(
        tokenizer=new_tokenizer(),
        text_encoder=models["text_encoder"].eval().half(),
        transformer=models["transformer"].eval().half(),
        vae=vae.eval().half(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=_FLOW_SHIFT
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _load_in_fp32(folder / "text_encoder" / "config.json")
    (folder / CARD_FILE).write_text(json.dumps(CARD, indent=2) + "\n")


def _load_in_fp32(config_path: Path) -> None:
    """Half on disk only: transformers would take the type on disk for the one to compute in."""
    config = json.loads(config_path.read_text())
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2) + "\n")
