"""Previews: what a job will look like, from its latents by a linear map instead of the VAE.

A latent's channels say the colour of its cell of pixels nearly linearly; `preview.json` in a model
folder holds the map that `python -m workers.models.preview` has fitted to its VAE.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streams.errors import SettingsError
from workers.sampler.families.base import read_config

if TYPE_CHECKING:
    from torch import Tensor

PREVIEW_FILE = "preview.json"  # no part of a model's version: what the model makes is the same
PREVIEWS = "sampler.preview"  # their folder in a run's; the sweep takes them after its end
MEDIA_TYPE = "image/png"


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """`rgb = latents @ factors + bias`, each colour in [0, 1].

    `factors` (C, 3), `bias` (3,), float32.
    """

    factors: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def picture(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """(H, W, 3), a pixel a cell, of one latent frame (C, H, W)."""
        import torch

        factors, bias = (torch.from_numpy(each).to(latents) for each in (self.factors, self.bias))
        colours = torch.einsum("chw,cr->hwr", latents, factors) + bias
        picture: npt.NDArray[np.uint8] = (
            colours.clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()
        )
        return picture


def read_preview_map(folder: Path, num_channels: int) -> PreviewMap | None:
    """The model's, if it has one.

    Raises:
        SettingsError: preview.json is something else.
    """
    path = folder / PREVIEW_FILE
    if not path.exists():
        return None
    said = read_config(folder, PREVIEW_FILE)
    try:
        factors, bias = (np.asarray(said[key], np.float32) for key in ("factors", "bias"))
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path}: want numbers, `factors` and `bias`: {error}") from error
    is_finite = np.isfinite(factors).all() and np.isfinite(bias).all()
    if factors.shape != (num_channels, 3) or bias.shape != (3,) or not is_finite:
        raise SettingsError(f"{path}: want finite factors ({num_channels}, 3) and bias (3,)")
    return PreviewMap(factors, bias)


def png_of(picture: npt.NDArray[np.uint8]) -> bytes:
    """Of (H, W, 3)."""
    from PIL import Image

    out = io.BytesIO()
    image: Any = Image.fromarray(picture)
    image.save(out, "PNG")
    return out.getvalue()
