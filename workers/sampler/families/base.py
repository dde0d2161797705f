"""What a model family is: what an adapter must have, and what adapters share.

An adapter is one file. Its `Family` says, without torch, which folders it serves and how large
their latents are; the prompt stage opens its encoder, the sampler its denoiser, the decoder its
latent decoder, and each loads only what it needs. Models, schedulers and prompt encoding are
diffusers' own; results equal diffusers' own pipeline for the same seed.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy.typing as npt

from schemas.records import Job
from streams.blobs.tensors import Expected
from streams.errors import SettingsError
from workers.torch_device import Place, install

if TYPE_CHECKING:
    from torch import Tensor

    from workers.models.card import ModelCard

#: A prompt's encodings by diffusers' names, each (B, ...).
Text = Mapping[str, "Tensor"]

NEGATIVE = "negative_"  # before the names of a negative prompt's encodings


@dataclass(frozen=True, slots=True)
class Geometry:
    """How pixels become latents: `num_channels` cells of `scale_px` x `scale_px` pixels.

    A first frame has a latent frame of its own; each `frame_stride` more share one. Sizes must be
    multiples of `size_multiple_px`, and frame counts 1 more than a multiple of `frame_multiple`.
    `max_height_px` and `max_width_px`: what positions reach; None: as far as anybody asks.
    """

    num_channels: int
    scale_px: int
    frame_stride: int
    size_multiple_px: int
    frame_multiple: int
    max_height_px: int | None = None
    max_width_px: int | None = None

    def latent_shape(self, job: Job) -> tuple[int, int, int, int]:
        """(C, T, H, W) of a job's latents, as the decoder gets them."""
        return (
            self.num_channels,
            (job.num_frames - 1) // self.frame_stride + 1,
            job.height_px // self.scale_px,
            job.width_px // self.scale_px,
        )


class Family(ABC):
    """An adapter's entry: what can be known of a model folder without torch, and what opens it.

    `name` is as in DESIGN 6, `pipeline` the `_class_name` of its model_index.json. `defaults` are
    values of a card that reel.json leaves out, those of diffusers' pipeline; `parameters` are keys
    of its own in reel.json, with their values where it leaves them out.
    """

    name: str
    pipeline: str
    defaults: Mapping[str, Any]
    parameters: Mapping[str, float]

    @abstractmethod
    def components(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """The folders that a whole model has.

        Raises:
            SettingsError: a kind of this family that is not served.
        """

    @abstractmethod
    def geometry(self, folder: Path) -> Geometry:
        """From the components' configurations."""

    def is_guidance_embedded(self, folder: Path, said: Mapping[str, Any]) -> bool:
        """Whether a request's guidance scale goes into the forward: one row, no negative prompt."""
        del folder, said
        return False

    @abstractmethod
    def encoder(self, folder: Path, place: Place, card: ModelCard) -> Encoder:
        """Of prompts."""

    @abstractmethod
    def denoiser(self, folder: Path, place: Place, card: ModelCard) -> Denoiser:
        """Of latents.

        Raises:
            SettingsError: `install`, or a scheduler whose steps nobody could repeat.
        """

    @abstractmethod
    def decoder(self, folder: Path, place: Place, card: ModelCard) -> LatentDecoder:
        """From latents to frames."""


class Encoder(ABC):
    """A family's prompt encoding: its pipeline, loaded without transformer and VAE."""

    without: ClassVar[tuple[str, ...]] = ("transformer", "vae")

    def __init__(self, folder: Path, place: Place, card: ModelCard) -> None:
        import diffusers

        index = read_config(folder, "model_index.json")
        pipeline: Any = getattr(diffusers, index["_class_name"])
        # The scheduler is a small JSON file; pipelines do not construct without one.
        self._pipeline = pipeline.from_pretrained(
            folder, **dict.fromkeys(self.without), torch_dtype=place.dtype, local_files_only=True
        ).to(place.device)
        self._device, self._pad_length = place.device, card.text_pad_length

    @abstractmethod
    def encode(self, prompts: list[str]) -> Text:
        """All that a denoiser's `text_layout` names, a row a prompt."""


class Denoiser(ABC):
    """A family's transformer and noise schedule. All state of a job is an argument.

    A class that says nothing else has latents as the VAE has them, guidance by a second row, one
    transformer, and a schedule made from nothing but the number of steps.
    """

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        import diffusers

        self._place, self._card, self._geometry = place, card, geometry
        self._transformer = self._load(folder, "transformer")
        self._experts = [self._transformer]
        self._dtype = self._transformer.dtype  # to ask for it walks all modules: 4 % of a step
        config = read_config(folder, "scheduler/scheduler_config.json")
        if config.get("stochastic_sampling"):
            raise SettingsError(f"{folder} draws noise that no seed repeats: stochastic_sampling")
        self._scheduler_class: Any = getattr(diffusers, config["_class_name"])
        self._prototype = self._scheduler_class.from_config(config)

    def _load(self, folder: Path, component: str) -> Any:
        """A transformer of the model, ready to predict."""
        import diffusers

        config = read_config(folder, f"{component}/config.json")
        loaded: Any = getattr(diffusers, config["_class_name"]).from_pretrained(
            folder, subfolder=component, torch_dtype=self._place.dtype, local_files_only=True
        )
        return install(loaded, self._place)

    def with_experts(self, make: Callable[[Any], Any]) -> Self:
        """One with other transformers, made from its own, and all else shared."""
        other = copy.copy(self)
        other._experts = [make(each) for each in self._experts]
        other._transformer = other._experts[0]
        return other

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Forwards in here go on from what those under the same name left in a step cache."""
        with ExitStack() as contexts:
            for expert in self._experts:
                contexts.enter_context(expert.cache_context(name))
            yield

    @abstractmethod
    def text_layout(self) -> Expected:
        """Type and shape of each of a prompt's encodings, by name, without the batch."""

    @abstractmethod
    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """One forward for rows of one shape, constants and expert, at any timesteps.

        Args:
            latents: (B, ...) float32, as `prepare_latents` makes them.
            timesteps: (B,).
            text: (B, ...) each, as `text_layout` says.
            jobs: of each row.
            expert: as `expert` says of each row's timestep.
        Returns:
            As latents, in the transformer's dtype.
        """

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: Text, jobs: Sequence[Job], expert: int
    ) -> Tensor:
        """`predict`; where it is compiled, for 1, 2, 4, 8 ... rows, so that graphs stay few."""
        num_rows = len(jobs)
        if self._place.settings.compile_backend is None or num_rows.bit_count() == 1:
            return self.predict(latents, timesteps, text, jobs, expert)
        num_more = (1 << num_rows.bit_length()) - num_rows

        def padded(rows: Tensor) -> Tensor:
            import torch

            return torch.cat([rows, *[rows[-1:]] * num_more])

        prediction = self.predict(
            padded(latents), padded(timesteps), {name: padded(each) for name, each in text.items()},
            [*jobs, *([jobs[-1]] * num_more)], expert,
        )  # fmt: skip
        return prediction[:num_rows]

    def prepare_latents(self, job: Job) -> Tensor:
        """Initial noise, (1, C, T, H, W) float32."""
        return self._noise((1, *self._geometry.latent_shape(job)), job.seed)

    def _noise(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Drawn on the CPU, so alike on every device."""
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        return noise.to(self._place.device)

    def new_schedule(self, job: Job) -> Any:
        """A scheduler of the job's own: `step` mutates it."""
        schedule = self._scheduler_class.from_config(self._prototype.config)
        self._set_timesteps(schedule, job)
        if hasattr(schedule, "set_begin_index"):
            schedule.set_begin_index(0)
        return schedule

    def _set_timesteps(self, schedule: Any, job: Job) -> None:
        schedule.set_timesteps(job.num_inference_steps, device=self._place.device)

    def constants(self, job: Job) -> Hashable:
        """What rows of a forward must share, beside model and shape."""
        del job
        return None

    def expert(self, timestep: Tensor) -> int:
        """Which transformer predicts at a timestep."""
        del timestep
        return 0

    def guidance_scale(self, job: Job, timestep: Tensor) -> float:
        """Of a guided job's step; a Python float: a tensor of its own would round in its dtype."""
        del timestep
        return job.guidance_scale

    def final_latents(self, latents: Tensor, job: Job) -> Tensor:
        """(C, T, H, W) of (1, ...): what the decoder is to get."""
        del job
        return latents[0]


class LatentDecoder(ABC):
    """A family's VAE; not safe to use from several threads.

    One that says nothing else decodes a clip at once: what it makes of a frame hangs on later ones.
    """

    def __init__(self, folder: Path, place: Place, card: ModelCard, geometry: Geometry) -> None:
        """`card`: for a family whose decoding has parameters."""
        import diffusers

        del card
        self._place, self._geometry = place, geometry
        config = read_config(folder, "vae/config.json")
        vae: Any = getattr(diffusers, config["_class_name"]).from_pretrained(
            folder, subfolder="vae", torch_dtype=place.dtype, local_files_only=True
        )
        self._vae = vae.to(place.device).eval()

    @abstractmethod
    def _scaled(self, latents: Tensor) -> Tensor:
        """What the VAE takes, of normalised (1, C, T, H, W), in its dtype."""

    def _decode(self, latents: Tensor, job: Job) -> Tensor:
        """(1, 3, F, H, W) in [-1, 1], by the VAE's own `decode`."""
        del job
        pixels: Tensor = self._vae.decode(self._scaled(latents), return_dict=False)[0]
        return pixels

    def frames(
        self, latents: Tensor, job: Job, *, is_tiled: bool = False
    ) -> Iterator[npt.NDArray[Any]]:
        """Decode one job's latents, in pieces that need least memory.

        Args:
            latents: (C, T, H, W) float32, normalised.
            job: whose they are.
            is_tiled: in overlapping tiles, blended: less memory, and other pixels.
        Yields:
            T arrays (f, height_px, width_px, 3) uint8; f is 1 first, then the frame stride.
        """
        batch = latents[None].to(self._place.device)
        if not is_tiled:
            yield from self._pieces(batch, job)
            return
        self._vae.enable_tiling()
        try:
            pixels = self._decode(batch, job)
        finally:
            self._vae.disable_tiling()
        yield from self._by_latent_frame(pixels)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents (C, T, H, W) of (F, H, W, 3) in [0, 1]: those of the video."""
        import torch

        place = self._place
        pixels = frames.permute(3, 0, 1, 2)[None] * 2 - 1
        found = self._vae.encode(pixels.to(place.device, place.dtype)).latent_dist.mode()
        one = torch.ones_like(found[:, :, :1, :1, :1])
        shift = self._scaled(torch.zeros_like(one))
        latents: Tensor = ((found - shift) / (self._scaled(one) - shift))[0]
        return latents

    def _pieces(self, latents: Tensor, job: Job) -> Iterator[npt.NDArray[Any]]:
        yield from self._by_latent_frame(self._decode(latents, job))

    def has_tiles(self, job: Job) -> bool:
        """Whether its frames are larger than one tile."""
        vae = self._vae
        return bool(
            job.height_px > vae.tile_sample_min_height or job.width_px > vae.tile_sample_min_width
        )

    def _by_latent_frame(
        self, pixels: Tensor, *, is_first: bool = True
    ) -> Iterator[npt.NDArray[Any]]:
        """The frames of (1, 3, F, H, W), those of each latent frame together."""
        first, stride = int(is_first), self._geometry.frame_stride
        if first:
            yield as_uint8(pixels[0, :, :1])
        for begin in range(first, pixels.shape[2], stride):
            yield as_uint8(pixels[0, :, begin : begin + stride])


def as_uint8(pixels: Tensor) -> npt.NDArray[Any]:
    """(3, f, H, W) in [-1, 1] -> (f, H, W, 3) uint8, rounded as diffusers' VideoProcessor does."""
    import torch

    # In place on the one copy that `clamp` makes: three of them were a decode's peak.
    unit = pixels.clamp(-1.0, 1.0).mul_(0.5).add_(0.5).clamp_(0, 1)
    values = unit.float().mul_(255).round_().to(torch.uint8)
    return values.permute(1, 2, 3, 0).cpu().contiguous().numpy()


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
        SettingsError: it is no JSON object.
    """
    path = folder / name
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} is no JSON object")
    return value
