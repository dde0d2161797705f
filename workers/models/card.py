"""What a model folder says of itself, read without torch: its card, its version, whether it fits.

A model is a pipeline's folder as diffusers writes it, weights in safetensors only. `reel.json` in
it may state the keys of `_CARD_KEYS` and its family's parameters; what it leaves out has the
defaults of diffusers' pipeline.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.records import Job
from streams.errors import SettingsError
from workers.sampler.families import FAMILIES
from workers.sampler.families.base import Family, read_config
from workers.sampler.previews import PREVIEW_FILE

CARD_FILE = "reel.json"

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_WHOLE_FILE_BYTES = 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model's name, version, defaults and limits.

    `size_multiple_px` and `frame_stride` are what requests are held to: sizes are multiples of the
    one, and frame counts are 1 more than a multiple of the other. `step_cache_threshold` is for
    jobs that ask for step caching (step_cache.py). `parameters` are its family's.
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
    min_num_inference_steps: int = 1
    max_num_inference_steps: int = 100
    size_multiple_px: int = 16
    frame_stride: int = 4
    max_height_px: int | None = None
    max_width_px: int | None = None
    is_guidance_embedded: bool = False
    step_cache_threshold: float = 0.05
    parameters: Mapping[str, float] = field(default_factory=dict)

    def is_guided(self, job: Job) -> bool:
        """Whether a job has a second row in each forward, for what it is to be guided away from."""
        return job.is_guided and not self.is_guidance_embedded


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
    "min_num_inference_steps": int,
    "max_num_inference_steps": int,
    "step_cache_threshold": float,
}


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder.

    Raises:
        SettingsError: `family_of`, or reel.json holds an unknown key or a wrong value.
    """
    family = family_of(folder)
    said = read_config(folder, CARD_FILE) if (folder / CARD_FILE).exists() else {}
    keys = {**_CARD_KEYS, **dict.fromkeys(family.parameters, float)}
    for key, value in said.items():
        kind = keys.get(key)
        if kind is None:
            raise SettingsError(
                f"{folder / CARD_FILE}: unknown key {key!r}; known are {', '.join(keys)}"
            )
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = isinstance(value, kind) or (kind is float and is_number)
        if not fits or (is_number and not 0 < value < math.inf):
            raise SettingsError(f"{folder / CARD_FILE}: {key} must be a positive {kind.__name__}")
    try:
        geometry = family.geometry(folder)
    except (KeyError, TypeError) as error:
        raise SettingsError(f"{folder}: a config.json lacks {error}") from error
    values: dict[str, Any] = (
        {
            "name": folder.resolve().name,
            "version": model_version(folder),
            "size_multiple_px": geometry.size_multiple_px,
            "frame_stride": geometry.frame_multiple,
            "max_height_px": geometry.max_height_px,
            "max_width_px": geometry.max_width_px,
            "is_guidance_embedded": family.is_guidance_embedded(folder, said),
            "parameters": {
                key: float(said.get(key, value)) for key, value in family.parameters.items()
            },
        }
        | dict(family.defaults)
        | {key: value for key, value in said.items() if key in _CARD_KEYS}
    )
    return ModelCard(**values)


def smallest_job(card: ModelCard) -> Job:
    """One frame of the least size in fewest steps: enough to see that a device computes."""
    side_px = card.size_multiple_px
    return Job(
        job_id="probe", run=1, tenant_id="probe", tier="probe", partition=0, model=card.name,
        model_version=card.version, num_frames=1, width_px=side_px, height_px=side_px,
        fps=card.fps, num_inference_steps=card.min_num_inference_steps, guidance_scale=1.0,
        seed=0, created_at=_EPOCH, deadline=_EPOCH,
    )  # fmt: skip


def family_of(folder: Path) -> Family:
    """The family that serves a model folder.

    Raises:
        SettingsError: it is missing, no pipeline that we serve, not complete, or has weights that
            are not safetensors.
    """
    if not (folder / "model_index.json").is_file():
        raise SettingsError(f"no model at {folder}: it has no model_index.json")
    index = read_config(folder, "model_index.json")
    found = index.get("_class_name", "folder of no pipeline")
    family = FAMILIES.get(found)
    if family is None:
        raise SettingsError(f"{folder} is a {found}: want one of {', '.join(FAMILIES)}")
    try:
        components = family.components(index)
    except SettingsError as error:
        raise SettingsError(f"{folder}: {error}") from error
    for component in components:
        if not (folder / component).is_dir():
            raise SettingsError(f"{folder} has no {component} folder: not a whole {found}")
    if pickled := [path for path in _files(folder) if path.suffix in _PICKLED]:
        raise SettingsError(f"{pickled[0]} may run code when it is loaded: safetensors only")
    return family


def model_version(folder: Path) -> str:
    """16 hex digits that change when the files do, cheap for 30 GB.

    SHA-256 over each file's path, size and content, of large files their first MiB only: that
    holds a safetensors file's header, with every tensor's name, type, shape and place.
    """
    return _digest(folder, _files(folder))


def component_digest(folder: Path) -> str:
    """As `model_version`, of one component: what it computes, not who saved it with what."""
    config = folder / "config.json"
    digest = _digest(folder, (path for path in _files(folder) if path != config))
    if not config.is_file():
        return digest
    said = {
        key: value
        for key, value in read_config(folder, config.name).items()
        if not key.startswith("_") and not key.endswith("_version")
    }
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(f"{digest} {text}".encode()).hexdigest()


def _digest(folder: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE_FILE_BYTES))
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """Every file that makes the model, in a stable order."""
    for path in sorted(folder.rglob("*")):
        is_hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        is_aside = path.suffix == ".md" or path == folder / PREVIEW_FILE
        if path.is_file() and not is_hidden and not is_aside:
            yield path
