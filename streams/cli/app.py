"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.cli.wishes import BrokerKind, VideoWish, parse_counts, parse_degradations, parse_size

app = typer.Typer(
    help="Text to video through five Kafka topics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topics_app = typer.Typer(help="The pipeline's topics on the broker.", no_args_is_help=True)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True)
stage_app = typer.Typer(help="Stop a stage from taking records, or let it go on.")
blobs_app = typer.Typer(help="The object store.", no_args_is_help=True)
dlt_app = typer.Typer(help="Dead letters: what they are, and their jobs' next run.")
app.add_typer(topics_app, name="topics")
app.add_typer(models_app, name="models")
app.add_typer(stage_app, name="stage", no_args_is_help=True)
app.add_typer(dlt_app, name="dlt", no_args_is_help=True)
app.add_typer(blobs_app, name="blobs")


Prompt = Annotated[str, typer.Argument(help="What the video shows.", show_default=False)]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job id.", show_default=False)]
Tenant = Annotated[str, typer.Option(help="Whose job it is.")]
Tier = Annotated[str | None, typer.Option(help="enterprise, pro or free.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed, the same video.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of the video.")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, such as 64x64.")]
Fps = Annotated[int | None, typer.Option(min=1, help="Frames a second.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; at most 1 is off.")]
Negative = Annotated[str, typer.Option(help="What the video must not show.")]
Model = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A WanPipeline folder; else the demo model.")
]
Broker = Annotated[BrokerKind | None, typer.Option(help="The broker to start.")]
Brokers = Annotated[int, typer.Option(metavar="1|3", help="How many Apache Kafka brokers.")]
FromTopic = Annotated[
    str | None,
    typer.Option("--topic", help="In this one, which Spring or Connect writes; else the stages'."),
]
OnlyStage = Annotated[str | None, typer.Option("--stage", help="Only this stage's.")]
OnlyTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
OnlyReason = Annotated[str | None, typer.Option("--reason", help="Only with this reason code.")]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Of records not older: 90min, 2h, 7d, or a date and time."),
]
StageName = Annotated[str, typer.Argument(metavar="STAGE", show_default=False)]


def _wish(
    prompt: str,
    seed: int | None,
    steps: int | None,
    frames: int | None,
    size: str | None,
    fps: int | None,
    guidance: float | None,
    negative: str,
) -> VideoWish:
    width_px, height_px = parse_size(size)
    return VideoWish(
        prompt=prompt,
        negative_prompt=negative,
        num_frames=frames,
        width_px=width_px,
        height_px=height_px,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=seed,
    )


@app.command()
def up(
    broker: Broker = None,
    brokers: Brokers = 1,
    bootstrap: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Use this broker, start none.")
    ] = None,
    model: Model = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the (first) broker; 0: any free one.")
    ] = 9092,
    workers: Annotated[
        str, typer.Option(metavar="STAGE=N,...", help="Workers of a stage, if not one.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Data and logs; else REEL_HOME.")
    ] = None,
) -> None:
    """Run everything on this machine: broker, topics, a worker for every stage. Ctrl-C stops it."""
    from streams.cli.stack import run_stack

    counts = parse_counts(workers)
    raise typer.Exit(run_stack(broker, brokers, bootstrap, model, port, counts, folder))


@app.command()
def demo(
    prompt: Prompt,
    broker: Broker = None,
    brokers: Brokers = 1,
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the video goes; else ./JOB.mp4.")
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    frames: Frames = None,
    size: Size = None,
    fps: Fps = None,
    guidance: Guidance = None,
    negative: Negative = "",
) -> None:
    """One prompt, one video, all of the pipeline, once: a stack of its own, removed afterwards."""
    from streams.cli.demo import run_demo

    wish = _wish(prompt, seed, steps, frames, size, fps, guidance, negative)
    raise typer.Exit(run_demo(wish, broker, brokers, model, out))


@app.command()
def submit(
    prompt: Prompt,
    tenant: Tenant = "local",
    tier: Tier = None,
    seed: Seed = None,
    steps: Steps = None,
    frames: Frames = None,
    size: Size = None,
    fps: Fps = None,
    guidance: Guidance = None,
    negative: Negative = "",
    model: Annotated[str | None, typer.Option(help="A model's name; else the workers'.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key of a tenant, the same job.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.001, help="Useless after so long.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    off_peak: Annotated[
        bool, typer.Option("--off-peak", help="It may wait until nothing else does.")
    ] = False,
    step_cache: Annotated[
        bool, typer.Option("--step-cache", help="Skip what changes little: faster, other pixels.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="fewer-steps|distilled-model|smaller",
            help="What may be let go of to meet the deadline.",
        ),
    ] = None,
) -> None:
    """Hand a job to the pipeline and print its id. With --wait: exit 1 unless it completed."""
    from streams.cli.jobs import submit_job

    wish = _wish(prompt, seed, steps, frames, size, fps, guidance, negative)
    raise typer.Exit(
        submit_job(
            wish, tenant, tier, model, idempotency_key, deadline,
            is_deferrable=off_peak, is_step_cached=step_cache,
            allowed=parse_degradations(allow), wait=wait,
        )
    )  # fmt: skip


@app.command()
def watch(job: JobId) -> None:
    """Print what happens to a job, from its beginning to its end; exit 1 unless it completed."""
    from streams.cli.jobs import watch_job

    raise typer.Exit(watch_job(job))


@app.command()
def get(
    job: JobId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the MP4 goes.")],
) -> None:
    """Fetch the video of a job that has completed, verified."""
    from streams.cli.jobs import get_video

    raise typer.Exit(get_video(job, file))


@app.command()
def cancel(
    job: JobId,
    run: Annotated[int | None, typer.Option(min=1, help="Which run; else the latest.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose, where two tenants have a job of that id.")
    ] = None,
) -> None:
    """Wish that a job ends as cancelled; `reel watch` tells whether it came in time."""
    from streams.cli.jobs import cancel_job

    raise typer.Exit(cancel_job(job, run, tenant))


@app.command()
def jobs(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
) -> None:
    """List the jobs that the topics hold, oldest first."""
    from streams.cli.jobs import list_jobs

    raise typer.Exit(list_jobs(tenant))


@app.command()
def tenants(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As a JSON array.")] = False,
) -> None:
    """Tell who waits how long, and why, the longest wait first."""
    from streams.cli.tenants import list_tenants

    raise typer.Exit(list_tenants(tenant, is_json=json))


@app.command()
def subscribe(
    group: Annotated[str | None, typer.Option(help="The consumer group.")] = None,
) -> None:
    """Print how jobs end, once each, as JSON lines; remember what was printed. Ctrl-C stops it."""
    from streams.cli.jobs import print_outcomes

    raise typer.Exit(print_outcomes(group))


@app.command()
def topology() -> None:
    """Print the stages with their groups and topics."""
    from streams.cli.operate import print_topology

    print_topology()


@topics_app.command("apply")
def topics_apply(
    from_start: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Let its group begin where the log begins now."),
    ] = None,
) -> None:
    """Create what is missing, set retention and sizes."""
    from streams.cli.operate import apply

    raise typer.Exit(apply(from_start))


@topics_app.command("check")
def topics_check() -> None:
    """Compare the broker's topics with the pipeline's; exit 1 if they differ."""
    from streams.cli.operate import check

    raise typer.Exit(check())


@topics_app.command("grow")
def topics_grow(
    partitions: Annotated[
        int, typer.Argument(metavar="N", min=3, help="The new count.", show_default=False)
    ],
) -> None:
    """Give the stages' topics more partitions while everything runs; REEL_PARTITIONS is the old N.

    Then start all anew with REEL_PARTITIONS=N, the last stage first; the prompt stage's workers all
    at once, because those of two counts would forward requests to each other.
    """
    from streams.cli.operate import grow

    raise typer.Exit(grow(partitions))


@topics_app.command("drained")
def topics_drained() -> None:
    """Say what no worker has finished yet; exit 0 when a pipeline may be turned off."""
    from streams.cli.operate import drained

    raise typer.Exit(drained())


@models_app.command("tiny")
def models_tiny(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of its random weights.")] = 0,
) -> None:
    """Write a tiny, untrained WanPipeline folder: the right shapes, in seconds."""
    from streams.cli.operate import write_tiny

    raise typer.Exit(write_tiny(folder, seed))


@models_app.callback()
def _models() -> None:
    """Model folders."""


@stage_app.command("pause")
def stage_pause(stage: StageName) -> None:
    """Every worker of the stage finishes what it holds and takes no more."""
    from streams.cli.operate import control

    raise typer.Exit(control(stage, "paused"))


@stage_app.command("resume")
def stage_resume(stage: StageName) -> None:
    """The stage takes records again."""
    from streams.cli.operate import control

    raise typer.Exit(control(stage, "running"))


@dlt_app.command("list")
def dlt_list(
    topic: FromTopic = None,
    stage: OnlyStage = None,
    tenant: OnlyTenant = None,
    reason: OnlyReason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
) -> None:
    """List dead letters, oldest first, and what has become of their jobs."""
    from streams.cli.dead_letters import list_letters

    raise typer.Exit(list_letters(topic, stage, tenant, reason, since, limit))


@dlt_app.command("show")
def dlt_show(
    letter: Annotated[str, typer.Argument(metavar="STAGE/PARTITION/OFFSET", show_default=False)],
    prompt: Annotated[bool, typer.Option("--prompt", help="Show the prompt's text too.")] = False,
) -> None:
    """Print a dead letter: findings, headers, and its record, if it is one."""
    from streams.cli.dead_letters import show_letter

    raise typer.Exit(show_letter(letter, is_prompt_shown=prompt))


@dlt_app.command("redrive")
def dlt_redrive(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[STAGE/PARTITION/OFFSET|JOB]", help="One letter, or one job."),
    ] = None,
    topic: FromTopic = None,
    stage: OnlyStage = None,
    tenant: OnlyTenant = None,
    reason: OnlyReason = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="Begin at most so many runs a second.")
    ] = None,
    why: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For the record; many want a reason.")
    ] = None,
) -> None:
    """Begin the next run of jobs that failed or expired; a line for each, what was done or why not.

    A letter of Spring or Connect whose run is open, or is done, is put back where it came from.

    A job that completed, was cancelled or rejected is left alone, and so is one under way: to do it
    twice does it once. `reel dlt orders` shows who did it.
    """
    from streams.cli.redrive import redrive_letters

    raise typer.Exit(
        redrive_letters(
            target, topic, stage, tenant, reason, since, rate, why,
            is_all=every, is_dry_run=dry_run,
        )
    )  # fmt: skip


@dlt_app.command("orders")
def dlt_orders(
    order: Annotated[
        str | None, typer.Argument(metavar="[ORDER]", help="Only this one, with its jobs.")
    ] = None,
) -> None:
    """List who had what redriven, when and why, oldest first."""
    from streams.cli.redrive import list_orders

    raise typer.Exit(list_orders(order))


@blobs_app.command("sweep")
def blobs_sweep(
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it; else only say what would go.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(metavar="HOURS", min=1, help="Leave alone what is younger.")
    ] = 24.0,
) -> None:
    """Remove blobs that no live record names; never outcomes, results or finished videos."""
    from streams.cli.blobs import sweep

    raise typer.Exit(sweep(older_than, is_applied=apply))


@blobs_app.callback()
def _blobs() -> None:
    """The object store."""
