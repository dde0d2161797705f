"""What a model folder says of itself, read without torch: its card, its version, whether it fits.

A model is a `WanPipeline` folder as diffusers writes it, weights in safetensors only. `reel.json`
in it may state the keys of `_CARD_KEYS`; what it leaves out has the defaults of Wan 2.1.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.errors import SettingsError

CARD_FILE = "reel.json"
COMPONENTS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_WHOLE_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model's name, version, defaults and limits.

    `size_multiple_px` and `frame_stride` are its geometry: sizes are multiples of the one, and
    frame counts are 1 more than a multiple of the other.
    """

    name: str
    version: str
    text_pad_length: int = 512
    num_frames: int = 81
    width_px: int = 832
    height_px: int = 480
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    max_num_frames: int = 241
    max_frame_px: int = 1280 * 720
    max_num_inference_steps: int = 100
    size_multiple_px: int = 16
    frame_stride: int = 4


_CARD_KEYS: Mapping[str, type] = {
    "name": str,
    "text_pad_length": int,
    "num_frames": int,
    "width_px": int,
    "height_px": int,
    "fps": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "max_num_frames": int,
    "max_frame_px": int,
    "max_num_inference_steps": int,
}


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder.

    Raises:
        SettingsError: `check_model_dir`, or reel.json holds an unknown key or a wrong value.
    """
    check_model_dir(folder)
    path = folder / CARD_FILE
    said = _read_json(path) if path.exists() else {}
    for key, value in said.items():
        kind = _CARD_KEYS.get(key)
        if kind is None:
            raise SettingsError(f"{path}: unknown key {key!r}; known are {', '.join(_CARD_KEYS)}")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = isinstance(value, kind) or (kind is float and is_number)
        if not fits or (is_number and not 0 < value < math.inf):
            raise SettingsError(f"{path}: {key} must be a positive {kind.__name__}")
    vae = _read_json(folder / "vae" / "config.json")
    transformer = _read_json(folder / "transformer" / "config.json")
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    return ModelCard(
        **{
            "name": folder.resolve().name,
            "version": model_version(folder),
            "size_multiple_px": spatial * transformer.get("patch_size", [1, 2, 2])[1],
            "frame_stride": temporal,
        }
        | said
    )


def check_model_dir(folder: Path) -> None:
    """Whether the folder is a model that we serve.

    Raises:
        SettingsError: it is missing, no WanPipeline, not complete, has weights that are not
            safetensors, or is a Wan 2.2 whose timesteps differ by token.
    """
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise SettingsError(f"no model at {folder}: it has no model_index.json")
    index = _read_json(index_path)
    if index.get("_class_name") != "WanPipeline":
        raise SettingsError(
            f"{folder} is a {index.get('_class_name', 'folder of no pipeline')}: want a WanPipeline"
        )
    if index.get("expand_timesteps"):
        raise SettingsError(f"{folder} is a Wan 2.2 whose timesteps differ by token: not served")
    experts = () if index.get("boundary_ratio") is None else ("transformer_2",)
    for component in (*COMPONENTS, *experts):
        if not (folder / component).is_dir():
            raise SettingsError(f"{folder} has no {component} folder: not a whole WanPipeline")
    if pickled := [path for path in _files(folder) if path.suffix in _PICKLED]:
        raise SettingsError(f"{pickled[0]} may run code when it is loaded: safetensors only")


def model_version(folder: Path) -> str:
    """16 hex digits that change when the files do, cheap for 30 GB.

    SHA-256 over each file's path, size and content, of large files their first MiB only: that
    holds a safetensors file's header, with every tensor's name, type, shape and place.
    """
    digest = hashlib.sha256()
    for path in _files(folder):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE_FILE_BYTES))
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """Every file that makes the model, in a stable order."""
    for path in sorted(folder.rglob("*")):
        is_hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path.suffix != ".md":
            yield path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} is no JSON object")
    return value
