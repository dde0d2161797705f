"""Schedulers as values: diffusers' own step in place, and one that fails half-way has stepped."""

from __future__ import annotations

import copy
from typing import Any


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
