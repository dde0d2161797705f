"""The loop that both trainings share: seeded, resumable to the bit, with a bar and curves.

A step draws its data and noise from (seed, step) alone, so a training that was interrupted goes on
as if it had not been. A checkpoint is one safetensors file: weights, their moving average, the
optimiser's moments, and the curves so far.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.models.demo.curves import write_curves

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CHECKPOINT_EVERY_S = 60.0
_WARM_UP_STEPS = 50
_REPORT_EVERY_S = 20.0  # where there is no terminal to draw a bar on
_BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps of one kind; the learning rate falls from the first to the last as a cosine."""

    name: str
    num_steps: int
    batch_size: int
    first_rate: float
    last_rate: float


@dataclass(frozen=True, slots=True)
class Step:
    """Where the training is: `number` counts from 0 over all phases."""

    number: int
    phase: Phase
    rate: float


#: The loss of a step, and the figures to plot.
Loss = Callable[[Step], "tuple[Tensor, Mapping[str, float]]"]


def step_at(phases: Sequence[Phase], number: int) -> Step:
    """The step of that number.

    >>> phases = [Phase("a", 100, 8, 1e-3, 1e-4), Phase("b", 100, 4, 1e-4, 0.0)]
    >>> step_at(phases, 150).phase.name, f"{step_at(phases, 150).rate:.1e}"
    ('b', '5.0e-05')
    """
    first = 0
    for phase in phases:
        if number < first + phase.num_steps:
            at = number - first
            cosine = (1 + math.cos(math.pi * at / phase.num_steps)) / 2
            rate = phase.last_rate + (phase.first_rate - phase.last_rate) * cosine
            return Step(number, phase, rate * min(1.0, (at + 1) / _WARM_UP_STEPS))
        first += phase.num_steps
    raise ValueError(f"no step {number}: {first} in all")


class Training:
    """One model in training, with its checkpoint in `folder`.

    `average` is a moving average of the weights, which is what gets used in the end.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        folder: Path,
        phases: Sequence[Phase],
        average_decay: float = 0.995,
    ) -> None:
        """Start anew, or where the checkpoint in `folder` stands."""
        import torch

        self._name, self._model, self._phases = name, model, phases
        self._path = folder / f"{name}.safetensors"
        self._curves_path = folder / f"{name}-curves.png"
        self._decay = average_decay
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._average = {key: each.detach().clone() for key, each in model.state_dict().items()}
        self._next_step = 0
        self._curves: dict[str, list[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._resume()

    def run(self, loss_of: Loss) -> None:
        """Train to the end, then leave the averaged weights in the model."""
        total = sum(phase.num_steps for phase in self._phases)
        bar = _Bar(self._name, self._next_step, total)
        saved_s = time.monotonic()
        self._model.train()
        while self._next_step < total:
            step = step_at(self._phases, self._next_step)
            figures = self._take(step, loss_of)
            self._next_step += 1
            bar.show(self._next_step, step.phase.name, figures)
            if time.monotonic() - saved_s > CHECKPOINT_EVERY_S or self._next_step == total:
                self._save()
                saved_s = time.monotonic()
        bar.close()
        self._model.load_state_dict(self._average)
        self._model.eval()

    def _take(self, step: Step, loss_of: Loss) -> Mapping[str, float]:
        """One step of the optimiser, of the average and of the curves."""
        import torch

        for group in self._optimiser.param_groups:
            group["lr"] = step.rate
        loss, figures = loss_of(step)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        decay = min(self._decay, (1 + step.number) / (10 + step.number))
        with torch.no_grad():
            for key, each in self._model.state_dict().items():
                self._average[key].lerp_(each, 1 - decay)
        for key, figure in figures.items():
            self._curves.setdefault(key, []).append(float(f"{figure:.5g}"))
        return figures

    def _save(self) -> None:
        from safetensors.torch import save_file

        tensors = {f"model.{key}": each for key, each in self._model.state_dict().items()}
        tensors |= {f"average.{key}": each for key, each in self._average.items()}
        for key, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{key}.{name}": each for name, each in moments.items()}
        stands = {"step": str(self._next_step), "curves": json.dumps(self._curves)}
        partial = self._path.with_suffix(".partial")
        save_file({key: each.clone() for key, each in tensors.items()}, partial, stands)
        partial.replace(self._path)
        write_curves(self._curves_path, self._curves)

    def _resume(self) -> None:
        from safetensors import safe_open

        with safe_open(self._path, framework="pt") as file:
            stands = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self._next_step = int(stands["step"])
        self._curves = json.loads(stands["curves"])
        self._model.load_state_dict(_under("model.", tensors))
        self._average = _under("average.", tensors)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, each in _under("optimiser.", tensors).items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = each
        state = self._optimiser.state_dict()
        self._optimiser.load_state_dict({**state, "state": moments})


def fingerprint(model: nn.Module) -> str:
    """8 hex digits that differ where the weights do."""
    digest = hashlib.sha256()
    for key, each in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(each.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)
    }


class _Bar:
    """A progress bar on standard error; a line now and then where that is no terminal."""

    def __init__(self, name: str, first_step: int, total: int) -> None:
        self._name, self._first, self._total = name, first_step, total
        self._start_s = time.monotonic()
        self._shown_s = 0.0
        self._is_terminal = sys.stderr.isatty()

    def show(self, done: int, phase: str, figures: Mapping[str, float]) -> None:
        """Draw, unless that was done a moment ago."""
        now_s = time.monotonic()
        every_s = 0.2 if self._is_terminal else _REPORT_EVERY_S
        if now_s - self._shown_s < every_s and done < self._total:
            return
        self._shown_s = now_s
        left_s = (now_s - self._start_s) / (done - self._first) * (self._total - done)
        full = _BAR_WIDTH * done // self._total
        said = "  ".join(f"{key} {figure:.4f}" for key, figure in figures.items())
        line = (
            f"{self._name} [{'#' * full}{'.' * (_BAR_WIDTH - full)}] {done}/{self._total} "
            f"{phase}  {said}  {left_s / 60:.1f} min left"
        )
        print(line, end="\033[K\r" if self._is_terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar standing."""
        if self._is_terminal:
            print(file=sys.stderr)
