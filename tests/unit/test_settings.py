"""Wrong settings end the program with one line that names the variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.settings import TIMEOUTS, Settings, child_environment, read_settings, settings_table


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever REEL_ variables the tests run under are none of theirs."""
    for name in [name for name in os.environ if name.startswith("REEL_")]:
        monkeypatch.delenv(name)


def refusal() -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_fit_together() -> None:
    settings = read_settings()
    assert (settings.bootstrap, settings.partitions) == ("127.0.0.1:9092", 24)


@pytest.mark.parametrize(("smaller", "how", "larger", "why"), TIMEOUTS)
def test_each_inequality_between_timeouts_is_checked(
    smaller: str, how: str, larger: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_ms = getattr(read_settings(), larger)
    least_wrong_ms = limit_ms if how == "<" else limit_ms + 1
    text = (
        f"REEL_{smaller.upper()} ({least_wrong_ms}) must be {how} "
        f"REEL_{larger.upper()} ({limit_ms}): {why}"
    )
    monkeypatch.setenv(f"REEL_{smaller.upper()}", str(least_wrong_ms))
    assert refusal() == text
    monkeypatch.setenv(f"REEL_{smaller.upper()}", str(least_wrong_ms - 1))
    assert why not in refusal_or_none()  # though it may be beyond the limit of another inequality


def refusal_or_none() -> str:
    try:
        read_settings()
    except SettingsError as error:
        return str(error)
    return ""


def test_the_defaults_are_kept_long_enough_to_redrive() -> None:
    settings = read_settings()
    assert settings.longest_run_s == 24 * 3600 + 10 + 60 + 600
    assert settings.needed_s == settings.longest_run_s + settings.redrive_window_s
    assert settings.needed_s < settings.retention_s


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"PARTITIONS": "25"}, "REEL_PARTITIONS must be a multiple of the 3 tiers"),
        ({"TIERS": "a,b,a", "DEFAULT_TIER": "a"}, "REEL_TIERS names a tier twice"),
        ({"DEFAULT_TIER": "gold"}, "unknown tier gold: not in REEL_TIERS"),
        ({"TENANTS": "acme=gold"}, "unknown tier gold: not in REEL_TIERS"),
        ({"WINDOW": "8", "WINDOW_RESUME": "8"}, "REEL_WINDOW_RESUME must be < REEL_WINDOW"),
        ({"WINDOW": "64", "LOOK_AHEAD": "63"}, "REEL_LOOK_AHEAD must be >= REEL_WINDOW"),
        ({"TIER_WEIGHTS": "gold=2"}, "weight of an unknown tier gold"),
        ({"TIER_WEIGHTS": "pro=0"}, "REEL_TIER_WEIGHTS must be numbers > 0"),
        ({"TIER_WEIGHTS": "pro=inf"}, "REEL_TIER_WEIGHTS must be numbers > 0"),
        ({"RETRY_DELAYS_S": "10,10"}, "REEL_RETRY_DELAYS_S must ascend from 1 or more"),
        ({"RETRY_DELAYS_S": "60,10"}, "REEL_RETRY_DELAYS_S must ascend from 1 or more"),
        ({"RETRY_DELAYS_S": "0,10"}, "REEL_RETRY_DELAYS_S must ascend from 1 or more"),
        ({"TENANTS": "acme"}, "REEL_TENANTS: want key=value,key=value"),
        ({"KAFKA_EXTRA": "ssl.ca.location"}, "REEL_KAFKA_EXTRA: want key=value,key=value"),
    ],
)
def test_values_that_do_not_fit_are_refused_in_words(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"REEL_{name}", value)
    assert refusal() == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "many"),
        ("GROUP_PROTOCOL", "share"),
        ("METRICS_PORT", "70000"),
        ("BATCH_MAX", "0"),
        ("DEADLINE_S", "inf"),
        ("DTYPE", "float8"),
        ("RETRY_DELAYS_S", "10,soon"),
        ("RETRY_DELAYS_S", ","),
        ("RETENTION_S", "0"),
        ("EXPIRY_GRACE_MS", "-1"),
    ],
)
def test_a_wrong_value_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"REEL_{name}", value)
    assert refusal().startswith(f"REEL_{name}: ")


def test_an_unknown_variable_is_refused_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REEL_PARTITION", "6")
    assert refusal().startswith("unknown setting REEL_PARTITION")


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REEL_PARTITIONS", "")
    assert read_settings().partitions == 24


def test_lists_and_pairs_are_read_from_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REEL_TIERS", "gold, silver")
    monkeypatch.setenv("REEL_DEFAULT_TIER", "silver")
    monkeypatch.setenv("REEL_TENANTS", "acme=gold, zoo = silver")
    monkeypatch.setenv("REEL_KAFKA_EXTRA", "sasl.password=a=b")
    monkeypatch.setenv("REEL_RETRY_DELAYS_S", "5, 30")
    settings = read_settings()
    assert settings.retry_delays_s == (5, 30)
    assert settings.tiers == ("gold", "silver")
    assert settings.tenants == {"acme": "gold", "zoo": "silver"}
    assert settings.kafka_extra == {"sasl.password": "a=b"}


def test_tiers_that_are_given_no_weight_weigh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().weights == {"enterprise": 8, "pro": 3, "free": 1}
    monkeypatch.setenv("REEL_TIERS", "free,gold,pro")
    assert read_settings().weights == {"free": 1, "gold": 1, "pro": 3}
    monkeypatch.setenv("REEL_TIER_WEIGHTS", "gold=2.5")
    assert read_settings().weights == {"free": 1, "gold": 2.5, "pro": 1}


def test_settings_shown_anywhere_hold_no_secret() -> None:
    settings = read_settings(
        s3_access_key="canary-1",
        s3_secret_key="canary-2",
        kafka_extra={"sasl.password": "canary-3"},
    )
    assert "canary" not in repr(settings) + str(settings)


def test_settings_do_not_change() -> None:
    settings = read_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.partitions = 3  # type: ignore[misc]


def test_blobs_lie_at_home_unless_told_otherwise(tmp_path: Path) -> None:
    assert read_settings(home=tmp_path).blobs_uri == (tmp_path / "blobs").as_uri()
    assert read_settings(blobs="s3://reels/x").blobs_uri == "s3://reels/x"


def test_a_child_process_gets_its_own_settings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REEL_PARTITIONS", "6")
    environment = child_environment({"batch_max": 2})
    assert {name: text for name, text in environment.items() if name.startswith("REEL_")} == {
        "REEL_BATCH_MAX": "2"
    }
    assert environment["PATH"] == os.environ["PATH"]


def test_the_table_lists_every_setting_with_its_meaning() -> None:
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [
        f"REEL_{name.upper()}" for name in Settings.model_fields
    ]
    assert all(len(row.split("|")) == 5 and len(row.split("|")[3]) > 3 for row in rows)
    assert "| `REEL_HOME` | `~/.reelstream` |" in settings_table()


def test_the_readme_prints_the_settings_as_they_are() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    assert settings_table() in readme


def test_a_tier_is_not_called_as_the_queue_of_deferrable_jobs() -> None:
    with pytest.raises(ValueError, match="off-peak is no tier"):
        Settings(tiers=("pro", "off-peak"), partitions=24, default_tier="pro")
