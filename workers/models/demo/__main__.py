"""Train the demo model: `python -m workers.models.demo` (`make train-demo-model`).

What is done stays done: a training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from workers.models.demo.model import demo_model_dir, write_model
from workers.models.demo.pictures import write_contact_sheet
from workers.models.demo.shapes import DEFAULT_SIZE, SCENES, random_clip, random_scene
from workers.models.preview import fit, write_preview_map
from workers.torch_device import DeviceSettings

NUM_THREADS = 2
_NUM_RECONSTRUCTIONS = 12
_NUM_PREVIEW_CLIPS = 96


def main() -> None:
    """Train the VAE, encode the clips, train the transformer, write the model folder."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.demo", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tmp/demo-model"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=demo_model_dir(), help="the model folder")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()

    import torch

    from workers.models.demo.training import fingerprint
    from workers.models.demo.transformer import (
        latent_clips,
        latent_statistics,
        train_transformer,
    )
    from workers.models.demo.vae import train_vae

    torch.set_num_threads(NUM_THREADS)
    torch.set_flush_denormal(True)  # an order of magnitude, early in the training of the VAE
    _say("1. The video autoencoder")
    vae = train_vae(words.work, words.seed)
    _write_reconstructions(words.work / "reconstructions.png", vae)
    _say("2. Latents of the drawn clips")
    # What was made with another VAE, one that has been trained on since, is no use with this one.
    of_this_vae = words.work / f"vae-{fingerprint(vae)}"
    clips = latent_clips(vae, of_this_vae, words.seed)
    _say("3. The transformer and the text encoder")
    models = train_transformer(clips, of_this_vae, words.seed)
    write_model(words.out, vae, models, latent_statistics(clips[DEFAULT_SIZE]))
    _say("4. Its preview map")
    fit_previews(words.out, words.seed)
    _say(f"The model is in {words.out}. Its scores: make eval-demo-model")


def fit_previews(folder: Path, seed: int) -> None:
    """Write the model's preview map, fitted to drawn clips."""
    rng = np.random.default_rng([seed, 3])
    drawn = (
        random_clip(random_scene(rng), DEFAULT_SIZE, rng)[0].astype(np.float32) / np.float32(255)
        for _ in range(_NUM_PREVIEW_CLIPS)
    )
    fitted, explained = fit(folder, DeviceSettings(), drawn)
    write_preview_map(folder, fitted)
    _say(f"explains {explained:.0%} of the colours' variance")


def _write_reconstructions(path: Path, vae: Any) -> None:
    """Drawn clips, each followed by what the VAE makes of it."""
    import torch

    from workers.models.demo.vae import as_pixels, decode, encode

    rng = np.random.default_rng(7)
    videos = []
    for scene in rng.permutation(SCENES)[:_NUM_RECONSTRUCTIONS]:  # type: ignore[arg-type]
        frames, _ = random_clip(scene, DEFAULT_SIZE, rng)
        with torch.inference_mode():
            pixels = decode(vae, encode(vae, as_pixels(frames)[None])[0])[0]
        decoded = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).numpy()
        videos += [(f"{scene.colour} {scene.shape} {scene.direction}", frames), ("", decoded)]
    write_contact_sheet(path, videos, num_columns=2)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
