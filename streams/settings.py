"""Every setting of every process, read from the environment (prefix `REEL_`) in this file only.

Settings are read once, frozen, and checked as a whole at start: a wrong value ends the program
with one line that names the variable. `TIMEOUTS` below is the one table of timeouts, with the
inequalities that must hold between them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from streams.core.tiers import DEFAULT_TIERS, DEFAULT_WEIGHTS, OFF_PEAK
from streams.errors import SettingsError

GroupProtocol = Literal["classic", "consumer"]

#: The inequalities between timeouts (DESIGN 4.10): smaller, how, larger, why.
TIMEOUTS: tuple[tuple[str, Literal["<", "<="], str, str], ...] = (
    ("poll_ms", "<=", "poll_limit_ms", "completions and controls must not wait behind an idle"
     " poll"),
    ("heartbeat_ms", "<", "session_timeout_ms", "a member that lives must be heard in time"),
    ("session_timeout_ms", "<=", "max_poll_interval_ms", "librdkafka refuses the opposite"),
    ("delivery_timeout_ms", "<", "max_poll_interval_ms", "an unacknowledged record must surface"
     " before its partition is taken away"),
    ("drain_ms", "<", "max_poll_interval_ms", "a draining worker polls, but a revoke waits for it"),
    ("drain_ms", "<", "grace_ms", "SIGKILL must not cut a drain short"),
    ("commit_interval_ms", "<=", "drain_ms", "a drain ends with a commit"),
)  # fmt: skip


class Settings(BaseSettings):
    """What a process of Reelstream runs under; see the README's settings page for the table."""

    model_config = SettingsConfigDict(
        env_prefix="REEL_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    home: Path = Field(
        default_factory=lambda: Path.home() / ".reelstream",
        description="Folder for the local stack's data, the cached broker and models.",
    )

    # Kafka
    bootstrap: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port,...")
    group_protocol: GroupProtocol = Field(
        "consumer", description="`consumer` (KIP-848; Apache Kafka 4) or `classic`."
    )
    partitions: int = Field(
        24, ge=1, description="N of every stage topic: a multiple of the tiers, >= 3 x workers."
    )
    replication_factor: int = Field(1, ge=1, description="3 in production; 1 on one broker.")
    schema_registry_url: str | None = Field(None, description="Confluent wire format if set.")
    kafka_extra: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        repr=False,  # it holds passwords
        description="More librdkafka settings, `key=value` separated by commas (TLS, SASL).",
    )

    # Object store
    blobs: str = Field("", description="file:///folder or s3://bucket/prefix; empty: home/blobs.")
    s3_endpoint: str | None = Field(None, description="URL of an S3 that is not AWS's.")
    s3_access_key: str | None = Field(None, repr=False, description="Else the AWS default chain.")
    s3_secret_key: str | None = Field(None, repr=False, description="Goes with s3_access_key.")
    s3_region: str = Field("us-east-1", description="Region for signatures.")

    # Tenants
    tiers: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_TIERS, description="Tier of stripe 0, 1, 2...; partition p belongs to p mod count."
    )
    default_tier: str = Field("free", description="Tier of a tenant that names none (open table).")
    tenants: Annotated[dict[str, str] | None, NoDecode] = Field(
        None, description="`tenant=tier,...`: a closed table. Unset: every tenant is welcome."
    )
    tier_weights: Annotated[dict[str, float], NoDecode] = Field(
        DEFAULT_WEIGHTS,
        description="`tier=weight,...`: shares of a worker while all tiers wait; 1 if not named.",
    )
    tier_rates: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="`tier=requests,...`: most of a tenant a minute. No limit if not named.",
    )
    tenant_jobs: int = Field(
        256,
        ge=0,
        description="Most jobs of a tenant in the pipeline, others are parked; 0: no limit.",
    )
    tier_jobs: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="`tier=jobs,...`: the same, for tenants of these tiers.",
    )
    tier_gpu_seconds: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="`tier=seconds,...`: most work of a tenant in the pipeline, estimated.",
    )
    tier_parked: Annotated[dict[str, float], NoDecode] = Field(
        {},
        description="`tier=requests,...`: most of a tenant that are parked; others are refused.",
    )
    deadline_margin: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Refuse what is predicted to take so many times what its deadline leaves.",
    )
    ageing_ms: int = Field(
        300_000,
        ge=0,
        description="A record is due after so long, or at its deadline; among its tenant's own.",
    )
    deadline_s: float = Field(
        24 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest deadline, from creation; also of a request that names none.",
    )

    # How long things are kept and tried again
    retention_s: int = Field(
        7 * 24 * 3600,
        ge=1,
        description="Records stay on their topics for so long. > deadline + retries + redrives",
    )
    redrive_window_s: int = Field(
        3 * 24 * 3600, ge=0, description="A job may be redriven for so long after its last try."
    )
    retry_delays_s: Annotated[tuple[int, ...], NoDecode] = Field(
        (10, 60, 600), min_length=1, description="Retry topics' delays in seconds, ascending"
    )
    expiry_grace_ms: int = Field(
        5_000, ge=0, description="What the expirer leaves a running stage to end a job first."
    )

    # The worker
    model: Path | None = Field(None, description="A model: a diffusers pipeline's folder.")
    distilled_model: Path | None = Field(
        None, description="Another, with its text encoder and VAE, that jobs may be moved to."
    )
    device: str = Field("cpu", description="cpu, cuda or cuda:N.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of weights.")
    attention: str | None = Field(
        None, description="One of diffusers' attention backends (`flash`, `sage`); unset: torch's."
    )
    compile: str | None = Field(
        None,
        description="One of torch.compile's backends (`inductor`) for transformers; unset: none.",
    )
    offload: Literal["block", "leaf"] | None = Field(
        None, description="Transformers stay in host memory, a block or a layer at a time apart."
    )
    vae_tiling: bool = Field(
        False, description="Decode large frames in tiles always, not only for want of memory."
    )
    torch_threads: int = Field(0, ge=0, description="Threads of a CPU worker; 0: torch's choice.")
    metrics_host: str = Field("127.0.0.1", description="Where /metrics, /healthz, /readyz listen.")
    metrics_port: int = Field(0, ge=0, le=65535, description="0: any free port, told in the log.")
    io_threads: int = Field(4, ge=1, description="Threads that fetch and store blobs.")
    batch_max: int = Field(4, ge=1, description="Most records in a micro-batch.")
    resident_max: int = Field(
        16,
        ge=1,
        description="Most jobs of a tier, and heavier ones, in a sampler, which holds no more than "
        "it has use for; twice as many where tenants would be without their share.",
    )
    step_rows_max: int = Field(
        32, ge=1, description="Most rows of one forward; fewer where more don't pay, as measured."
    )
    checkpoint_ms: int = Field(
        10_000, ge=0, description="Between two checkpoints of a job in the sampler."
    )
    preview_ms: int = Field(
        3_000, ge=0, description="Between two previews of a job in the sampler; 0: none."
    )
    batch_age_ms: int = Field(200, ge=0, description="Longest wait for company in a batch.")
    window: int = Field(64, ge=1, description="Records held per partition before it is paused.")
    window_resume: int = Field(32, ge=0, description="It is resumed at this many. < window")
    window_per_tenant: int = Field(
        16, ge=1, description="Of one tenant only so many count: it is read on past those beyond."
    )
    look_ahead: int = Field(
        256, ge=1, description="Records held per partition at the very most. >= window"
    )
    prefetch_kb: int = Field(
        1024,
        ge=64,
        description="What a worker reads ahead, in KiB; librdkafka holds as much again.",
    )

    max_tries: int = Field(4, ge=1, description="Tries of a stage's work on a job, then failed.")
    breaker_limit: int = Field(
        5, ge=1, description="After so many jobs failed in a row a worker probes itself."
    )

    # Timeouts, all in ms
    sick_ms: int = Field(
        300_000, ge=1000, description="A worker whose own host stays sick leaves the group after."
    )
    poll_ms: int = Field(100, ge=1, description="Longest wait in one poll.")
    commit_interval_ms: int = Field(1000, ge=1, description="Between two commits of a partition.")
    session_timeout_ms: int = Field(45_000, ge=1000, description="A dead worker is found in this.")
    heartbeat_ms: int = Field(3_000, ge=100, description="Heartbeats of the classic protocol.")
    max_poll_interval_ms: int = Field(300_000, ge=1000, description="A wedged loop is found.")
    delivery_timeout_ms: int = Field(120_000, ge=1000, description="A produce is given up after.")
    join_timeout_ms: int = Field(
        30_000, ge=1000, description="No assignment after this: a clear message, exit 1."
    )
    drain_ms: int = Field(20_000, ge=0, description="What SIGTERM leaves running work to finish.")
    grace_ms: int = Field(30_000, ge=0, description="SIGTERM to SIGKILL, whoever sends them.")
    store_connect_ms: int = Field(5_000, ge=1, description="Object store: connection.")
    store_read_ms: int = Field(30_000, ge=1, description="Object store: one read.")

    @property
    def poll_limit_ms(self) -> int:
        """The hard bound on one poll."""
        return 100

    @property
    def longest_run_s(self) -> float:
        """No run is worked for longer after its request was made: deadline and all retries."""
        return self.deadline_s + sum(self.retry_delays_s)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each tier in the fair queue."""
        return {tier: self.tier_weights.get(tier, 1.0) for tier in self.tiers}

    @property
    def needed_s(self) -> float:
        """What retention must outlast (DESIGN 2): a run, and the time to redrive it."""
        return self.longest_run_s + self.redrive_window_s

    @property
    def blobs_uri(self) -> str:
        """The object store's root; the folder under `home` if none is set."""
        return self.blobs or (self.home / "blobs").resolve().as_uri()

    @field_validator(
        "kafka_extra", "tenants", "tier_weights", "tier_rates", "tier_jobs", "tier_gpu_seconds",
        "tier_parked", mode="before",
    )  # fmt: skip
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if any(not sign for _, sign, _ in pairs):
            raise ValueError("want key=value,key=value")
        return {key.strip(): text.strip() for key, _, text in pairs}

    @field_validator("tiers", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("retry_delays_s", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        for smaller, how, larger, why in TIMEOUTS:
            less, more = getattr(self, smaller), getattr(self, larger)
            if less > more or (how == "<" and less == more):
                raise ValueError(
                    f"REEL_{smaller.upper()} ({less}) must be {how} "
                    f"REEL_{larger.upper()} ({more}): {why}"
                )
        if self.partitions % len(self.tiers):
            raise ValueError(f"REEL_PARTITIONS must be a multiple of the {len(self.tiers)} tiers")
        if len(set(self.tiers)) != len(self.tiers):
            raise ValueError("REEL_TIERS names a tier twice")
        if OFF_PEAK in self.tiers:
            raise ValueError(f"REEL_TIERS: {OFF_PEAK} is no tier, but where deferrable jobs wait")
        named = {self.default_tier, *(self.tenants or {}).values()}
        if unknown := named - set(self.tiers):
            is_unset = "default_tier" not in self.model_fields_set and self.default_tier in unknown
            way = "; set REEL_DEFAULT_TIER" if is_unset else ""
            raise ValueError(f"unknown tier {', '.join(sorted(unknown))}: not in REEL_TIERS{way}")
        if "tier_weights" in self.model_fields_set and (
            unknown := self.tier_weights.keys() - set(self.tiers)
        ):
            raise ValueError(f"weight of an unknown tier {', '.join(sorted(unknown))}")
        if not all(0 < each < math.inf for each in self.tier_weights.values()):
            raise ValueError("REEL_TIER_WEIGHTS must be numbers > 0")
        self._check_quotas()
        delays_s = self.retry_delays_s
        if delays_s[0] < 1 or list(delays_s) != sorted(set(delays_s)):
            raise ValueError("REEL_RETRY_DELAYS_S must ascend from 1 or more")
        if self.window_resume >= self.window:
            raise ValueError("REEL_WINDOW_RESUME must be < REEL_WINDOW")
        if self.look_ahead < self.window:
            raise ValueError("REEL_LOOK_AHEAD must be >= REEL_WINDOW")
        return self

    def _check_quotas(self) -> None:
        for name in ("tier_rates", "tier_jobs", "tier_gpu_seconds", "tier_parked"):
            quotas = getattr(self, name)
            # Deferrable jobs are no tier's; a rate counts them among the others.
            known = {*self.tiers, *(() if name == "tier_rates" else (OFF_PEAK,))}
            if unknown := quotas.keys() - known:
                tiers = ", ".join(sorted(unknown))
                raise ValueError(f"REEL_{name.upper()}: unknown tier {tiers}")
            if not all(0 < each < math.inf for each in quotas.values()):
                raise ValueError(f"REEL_{name.upper()} must be numbers > 0")
        if self.tier_parked and not (self.tenant_jobs or self.tier_jobs or self.tier_gpu_seconds):
            raise ValueError("REEL_TIER_PARKED without a quota: nothing would ever be parked")


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment, `overrides` on top.

    Raises:
        SettingsError: a value is wrong, a variable is unknown, or values don't fit together.
    """
    known = {f"REEL_{name.upper()}" for name in Settings.model_fields}
    given = {name for name in os.environ if name.startswith("REEL_")}
    if unknown := sorted(given - known):
        raise SettingsError(f"unknown setting {unknown[0]}: the README's settings page lists them")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"REEL_{str(first['loc'][0]).upper()}: " if first["loc"] else ""
        raise SettingsError(f"{name}{first['msg'].removeprefix('Value error, ')}") from error


def child_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment of a child process: ours without its `REEL_` variables, plus `settings`."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("REEL_")}
    return inherited | {f"REEL_{name.upper()}": str(value) for name, value in settings.items()}


def settings_table() -> str:
    """Every setting as a Markdown table, for the README; `python -m streams.settings` prints it."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, setting in Settings.model_fields.items():
        match setting.get_default(call_default_factory=True):
            case Path() as path if path.is_relative_to(Path.home()):
                shown = f"`~/{path.relative_to(Path.home())}`"
            case dict() as pairs if pairs:
                shown = f"`{','.join(f'{name}={value:g}' for name, value in pairs.items())}`"
            case None | "" | dict():
                shown = "unset"
            case tuple() as words:
                shown = f"`{','.join(str(word) for word in words)}`"
            case value:
                shown = f"`{value}`"
        rows.append(f"| `REEL_{name.upper()}` | {shown} | {setting.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(settings_table())
