"""What a job costs, in seconds of its stage's device: learned from what jobs took.

The one unit of fairness, quotas, lag and estimates. A stage's work on a job is a number of units
(denoising steps times forward rows; one for a stage that works a job in one go), each of a cost
that the shape of the video decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

#: Latent tokens at which attention, quadratic, costs as much as all that is linear. A guess for
#: video transformers; the measurements of a second shape correct it.
ATTENTION_TOKENS = 32_768
#: Shapes whose own measurements are kept: the last that were measured.
MAX_SHAPES = 1024

_PRIOR_WEIGHT = 2.0  # measurements that the scaled prior is worth
_MEMORY = 0.9  # what a measurement weighs after the next one: about the last ten count
_LONGEST_UNIT_S = 86_400.0
_LEAST_UNIT_S = 1e-6

K = TypeVar("K")


class Shape(NamedTuple):
    """Of a video, in pixels and pixel frames."""

    num_frames: int
    height_px: int
    width_px: int

    @property
    def megapixels(self) -> float:
        """Of all frames together."""
        return self.num_frames * self.height_px * self.width_px / 1e6

    @property
    def num_tokens(self) -> float:
        """Of the transformer: patches of 16x16 pixels, four frames to a latent frame (Wan, LTX).

        >>> Shape(81, 480, 832).num_tokens
        32760.0
        """
        return ((self.num_frames - 1) // 4 + 1) * (self.height_px / 16) * (self.width_px / 16)


@dataclass(frozen=True, slots=True)
class Prior:
    """What a unit costs as far as one can tell without having seen any.

    Its scale is a guess that the first measurement replaces; how it grows with the shape stands
    for all shapes that were not measured themselves.
    """

    fixed_s: float = 0.0
    megapixel_s: float = 0.0
    token_s: float = 0.0

    def unit_s(self, shape: Shape) -> float:
        """Seconds of a unit of that shape, positive."""
        tokens = shape.num_tokens
        attended = tokens * (1 + tokens / ATTENTION_TOKENS)
        seconds = self.fixed_s + self.megapixel_s * shape.megapixels + self.token_s * attended
        return max(seconds, _LEAST_UNIT_S)


@dataclass(slots=True)
class Average:
    """A mean that forgets; `weight` is how many measurements it is worth."""

    mean: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        """One more measurement."""
        before = self.weight * _MEMORY
        self.mean = (self.mean * before + value) / (before + 1)
        self.weight = before + 1


class Learned(NamedTuple):
    """What is known of one model version, as it is stored: `shape` None is all of its shapes.

    `mean` is in seconds a unit, for all shapes a factor on the prior.
    """

    model_version: str
    shape: Shape | None
    mean: float
    weight: float


class CostModel:
    """Costs of one stage on one kind of device.

    Without a measurement a unit costs what the prior says. The first measurement of any shape
    scales the prior: by the model version's own factor, else by that of all of them. A shape that
    was measured itself costs the mean of what it took, in which the scaled prior weighs as much
    as two measurements: one odd job does not set the price.

    >>> costs = CostModel(Prior(token_s=1e-5))
    >>> small, large = Shape(17, 64, 64), Shape(17, 128, 128)
    >>> costs.learn("v1", small, num_units=10, seconds=10 * 8 * Prior(token_s=1e-5).unit_s(small))
    >>> round(costs.estimate_s("v1", large, 1) / Prior(token_s=1e-5).unit_s(large), 6)
    8.0
    """

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._all = Average()
        self._models: OrderedDict[str, Average] = OrderedDict()
        self._shapes: OrderedDict[tuple[str, Shape], Average] = OrderedDict()

    def estimate_s(self, model_version: str, shape: Shape, num_units: float) -> float:
        """Seconds that so many units of that shape will take; positive."""
        scaled_s = self._factor(model_version) * self._prior.unit_s(shape)
        own = self._shapes.get((model_version, shape), Average())
        together = own.mean * own.weight + scaled_s * _PRIOR_WEIGHT
        return together / (own.weight + _PRIOR_WEIGHT) * max(num_units, 1)

    def learn(self, model_version: str, shape: Shape, num_units: float, seconds: float) -> None:
        """So many units of that shape took so long. What no clock can have measured is ignored."""
        if not (0 <= seconds <= _LONGEST_UNIT_S * num_units) or num_units <= 0:
            return
        unit_s = max(seconds / num_units, _LEAST_UNIT_S)
        factor = unit_s / self._prior.unit_s(shape)
        self._all.add(factor)
        _kept(self._models, model_version).add(factor)
        _kept(self._shapes, (model_version, shape)).add(unit_s)

    def num_measured(self, model_version: str, shape: Shape) -> float:
        """How many measurements of that very shape its estimate stands on, old ones fading."""
        return self._shapes.get((model_version, shape), Average()).weight

    def learned(self) -> tuple[Learned, ...]:
        """Everything, to be stored."""
        models = [Learned(name, None, *_pair(each)) for name, each in self._models.items()]
        shapes = [Learned(*key, *_pair(each)) for key, each in self._shapes.items()]
        return (*models, *shapes)

    def restore(self, learned: Iterable[Learned]) -> None:
        """Go on from what was stored.

        Raises:
            ValueError: a figure that `learned` cannot have told.
        """
        for each in learned:
            if not (0 < each.mean < float("inf") and 0 < each.weight <= 1 / (1 - _MEMORY)):
                raise ValueError(f"no such figures: {each.mean}, {each.weight}")
            if each.shape is None:
                found = _kept(self._models, each.model_version)
                total = self._all.weight + each.weight
                mean = (self._all.mean * self._all.weight + each.mean * each.weight) / total
                self._all = Average(mean, min(total, 1 / (1 - _MEMORY)))
            else:
                found = _kept(self._shapes, (each.model_version, each.shape))
            found.mean, found.weight = each.mean, each.weight

    def _factor(self, model_version: str) -> float:
        own = self._models.get(model_version, self._all)
        return own.mean if own.weight else 1.0


def _kept(found: OrderedDict[K, Average], key: K) -> Average:
    """The average of that key, which counts as used last; the one unused for longest goes."""
    if key not in found:
        found[key] = Average()
        if len(found) > MAX_SHAPES:
            found.popitem(last=False)
    found.move_to_end(key)
    return found[key]


def _pair(average: Average) -> tuple[float, float]:
    return average.mean, average.weight
