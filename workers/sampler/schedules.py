"""Schedulers as values: diffusers' own step in place, and one that fails half-way has stepped."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DPM = "CogVideoXDPMScheduler"  # the one that draws noise, and is told what it predicted last


def begin_draws(schedule: Any, seed: int, num_drawn: int) -> None:
    """Have a scheduler that draws noise go on from a job's initial noise of so many numbers.

    What such a one must remember between steps is kept on it, as others keep theirs.
    """
    if type(schedule).__name__ != DPM:
        return
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn(num_drawn, generator=generator)
    schedule.rng_state = generator.get_state()
    schedule.old_pred_original_sample = None


def stepped(
    schedule: Any, num_done: int, prediction: Tensor, latents: Tensor
) -> tuple[Any, Tensor]:
    """The scheduler and the latents after a step; what is given stays as it was."""
    own = copy_of_schedule(schedule)
    timestep = own.timesteps[num_done]
    if type(own).__name__ != DPM:
        return own, own.step(prediction, timestep, latents, return_dict=False)[0]
    import torch

    generator = torch.Generator("cpu")
    generator.set_state(own.rng_state.cpu())
    after, own.old_pred_original_sample = own.step(
        prediction, own.old_pred_original_sample, timestep,
        own.timesteps[num_done - 1] if num_done else None, latents, generator=generator,
        return_dict=False,
    )  # fmt: skip
    own.rng_state = generator.get_state()
    return own, after


def clean_estimate(schedule: Any, num_done: int, prediction: Tensor, latents: Tensor) -> Tensor:
    """What the model takes the latents to be without their noise: after its last step, the result.

    Args:
        schedule: after the step.
        num_done: steps, that one included.
        prediction: of that step, guidance applied.
        latents: before that step.
    """
    match type(schedule).__name__:
        case "FlowMatchEulerDiscreteScheduler":  # a straight line to sigma 0
            estimate: Tensor = latents - schedule.sigmas[num_done - 1].to(latents) * prediction
        case "UniPCMultistepScheduler":
            estimate = schedule.model_outputs[-1]
        case "CogVideoXDPMScheduler":
            estimate = schedule.old_pred_original_sample
        case _:
            once = copy_of_schedule(schedule)
            timestep = schedule.timesteps[num_done - 1]
            estimate = once.step(prediction, timestep, latents).pred_original_sample
    return estimate


def copy_of_schedule(schedule: Any) -> Any:
    """A scheduler that steps by itself from where this one stands.

    Its lists are its own (UniPC shifts its earlier predictions in place); tensors are shared, since
    no scheduler writes into one.
    """
    own = copy.copy(schedule)
    for name, value in vars(schedule).items():
        if isinstance(value, list):
            setattr(own, name, list(value))
    return own
