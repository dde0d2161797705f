"""The model families that are served, by the pipeline that a model folder names."""

from __future__ import annotations

from collections.abc import Mapping

from workers.sampler.families.base import Family
from workers.sampler.families.cogvideox import CogVideoX
from workers.sampler.families.hunyuan_video import HunyuanVideo
from workers.sampler.families.ltx import Ltx
from workers.sampler.families.wan import Wan

_ALL: tuple[Family, ...] = (Wan(), Ltx(), CogVideoX(), HunyuanVideo())

FAMILIES: Mapping[str, Family] = {each.pipeline: each for each in _ALL}
