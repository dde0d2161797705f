"""What a worker holds: its model, and perhaps a distilled one that jobs may be moved to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.records import Job
from streams.errors import InvalidRecord, SettingsError
from workers.models.card import ModelCard, component_digest, family_of, read_card
from workers.sampler.families.base import read_config

#: What a distilled model has of its own; all else is the model's.
_OF_ITS_OWN = ("transformer", "scheduler")


@dataclass(frozen=True, slots=True)
class Models:
    """The model of a deployment and, if there is one, a distilled model beside it.

    They share text encoder and VAE: prompts are encoded and latents decoded alike.
    """

    folder: Path
    card: ModelCard
    distilled_folder: Path | None = None
    distilled: ModelCard | None = None

    def __iter__(self) -> Iterator[tuple[Path, ModelCard]]:
        """Folder and card of each."""
        yield self.folder, self.card
        if self.distilled_folder is not None and self.distilled is not None:
            yield self.distilled_folder, self.distilled

    def named(self, name: str | None) -> ModelCard:
        """The card that a request is held to; the model's own for a name that nobody knows."""
        return next((card for _, card in self if card.name == name), self.card)

    def of(self, job: Job) -> ModelCard:
        """The card of the very model for which a job was admitted.

        Raises:
            InvalidRecord: `model_mismatch`: its embeddings or latents would mean nothing here.
        """
        for _, card in self:
            if card.version == job.model_version:
                return card
        held = " and ".join(f"{card.name} {card.version}" for _, card in self)
        raise InvalidRecord(
            f"the job is for {job.model} {job.model_version}, this worker holds {held}",
            reason_code="model_mismatch",
        )


def read_models(folder: Path, distilled: Path | None) -> Models:
    """The models in these folders.

    Raises:
        SettingsError: `read_card`, or the two do not go together.
    """
    card = read_card(folder)
    if distilled is None:
        return Models(folder, card)
    other = read_card(distilled)
    family = family_of(folder)
    if family_of(distilled) is not family:
        raise SettingsError(f"{distilled} is another kind of pipeline than {folder}")
    ours, its = folder.resolve(), distilled.resolve()
    if ours.is_relative_to(its) or its.is_relative_to(ours):
        raise SettingsError(f"{folder} and {distilled}: one lies in the other")
    if other.name == card.name:
        raise SettingsError(f"{folder} and {distilled} are both named {card.name}: see reel.json")
    if other.version == card.version:
        raise SettingsError(f"{folder} and {distilled} are the same model")
    is_alike = family.geometry(folder) == family.geometry(distilled)
    if not is_alike or _of_others(card) != _of_others(other):
        raise SettingsError(f"{distilled} has other latents or prompts than {folder}")
    for component in family.components(read_config(folder, "model_index.json")):
        if component.startswith(_OF_ITS_OWN):
            continue
        if component_digest(folder / component) != component_digest(distilled / component):
            raise SettingsError(f"{distilled} has another {component} than {folder}")
    return Models(folder, card, distilled, other)


def _of_others(card: ModelCard) -> dict[str, float]:
    """What encoder and decoder go by."""
    decoding = {key: each for key, each in card.parameters.items() if key.startswith("decode")}
    return {"text_pad_length": card.text_pad_length, **decoding}
