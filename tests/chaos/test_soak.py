"""What a soak makes of its samples and rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.chaos.faults import FAULTS
from tests.chaos.recovery import RECOVERY_S, STEPS_AGAIN
from tests.chaos.soak import (
    HEAD,
    HEIGHT_PX,
    JOBS_OF_SEED,
    WIDTH_PX,
    Sample,
    drawn,
    growth,
    plot,
    report,
)


def samples(per_sample_mib: float, leak: int = 0) -> list[Sample]:
    return [
        Sample(float(number), name, 50 + per_sample_mib * number, 30 + leak * (number // 50))
        for number in range(100)
        for name in ("prompt-1", "sampler-1")
    ]


def test_what_grows_all_the_time_is_seen_and_what_grew_at_first_is_not() -> None:
    assert growth(samples(0.0)) == (0.0, 0)
    warm = [Sample(n, "prompt-1", min(80.0, 50 + n), min(40, 10 + int(n))) for n in range(100)]
    assert growth(warm) == (0.0, 0)
    most_mib, _ = growth(samples(1.0))
    assert most_mib == pytest.approx(25.0)
    late = [Sample(n, "prompt-1", 50.0, 30 + (5 if n > 80 else 0)) for n in range(100)]
    assert growth(late) == (0.0, 5)


def a_row(**changes: str) -> dict[str, str]:
    sound = dict(
        zip(HEAD, ("1", "F1", "400", "400", "1600", "4", "9", "2.0", "0", "", ""), strict=True)
    )
    return sound | changes


def test_a_finding_many_duplicates_and_a_leak_each_miss_their_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "processes.png"
    assert report([a_row(), a_row(fault="calm")], samples(0.0), picture) == 0
    assert picture.stat().st_size > 0
    assert report([a_row(findings="1")], [], picture) == 1
    assert report([a_row(duplicates="81")], [], picture) == 1
    assert report([a_row(**{RECOVERY_S: "60.0"})], [], picture) == 1
    assert report([a_row(**{STEPS_AGAIN: "1"})], [], picture) == 1
    assert report([a_row()], samples(1.0), picture) == 1
    assert "goal memory_growth_mib 25 <= 8 missed" in capsys.readouterr().out


def test_a_plot_of_one_moment_is_one(tmp_path: Path) -> None:
    plot([Sample(1.0, "prompt-1", 50.0, 30), Sample(1.0, "prompt-1", 50.0, 30)], tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_both_panels_show_each_process(tmp_path: Path) -> None:
    flat = [Sample(float(number), "decoder-1", 40.0, 20) for number in range(100)]
    growing = [Sample(float(number), "prompt-1", 50.0 + number, 30) for number in range(100)]
    plot([*flat, *growing], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        for top in (0, HEIGHT_PX):
            panel = image.crop((62, top + 40, WIDTH_PX - 100, top + HEIGHT_PX - 42))
            colours = {colour for _, colour in panel.getcolors(maxcolors=1 << 16) or ()}
            assert len(colours - {(255, 255, 255)}) == 2


def test_twenty_seeds_draw_every_fault_and_each_of_them_two_thousand_jobs() -> None:
    draws = [drawn(seed) for seed in range(1, 21)]
    assert {name for each in draws for name in each} == set(FAULTS)
    assert all(sum(FAULTS[name].num_jobs for name in each) >= JOBS_OF_SEED for each in draws)
    assert draws[0] == drawn(1) != draws[1]
