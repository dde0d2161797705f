"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.cli.wishes import BrokerKind, VideoWish, parse_counts, parse_size

app = typer.Typer(
    help="Text to video through five Kafka topics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topics_app = typer.Typer(help="The pipeline's topics on the broker.", no_args_is_help=True)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True)
stages_app = typer.Typer(help="Stop a stage from taking records, or let it go on.")
app.add_typer(topics_app, name="topics")
app.add_typer(models_app, name="models")
app.add_typer(stages_app, name="stages", no_args_is_help=True)
blobs_app = typer.Typer(help="The object store.", no_args_is_help=True)
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
    Path | None, typer.Option(metavar="DIR", help="A WanPipeline folder; else the tiny one.")
]
Broker = Annotated[BrokerKind | None, typer.Option(help="The broker to start.")]
Brokers = Annotated[int, typer.Option(metavar="1|3", help="How many Apache Kafka brokers.")]
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
) -> None:
    """Hand a job to the pipeline and print its id. With --wait: exit 1 unless it completed."""
    from streams.cli.jobs import submit_job

    wish = _wish(prompt, seed, steps, frames, size, fps, guidance, negative)
    raise typer.Exit(submit_job(wish, tenant, tier, model, idempotency_key, deadline, wait=wait))


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
def jobs(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
) -> None:
    """List the jobs that the topics hold, oldest first."""
    from streams.cli.jobs import list_jobs

    raise typer.Exit(list_jobs(tenant))


@app.command()
def subscribe(
    group: Annotated[str | None, typer.Option(help="The consumer group.")] = None,
) -> None:
    """Print how jobs end, a JSON line each, and remember what was printed. Ctrl-C stops it."""
    from streams.cli.jobs import print_completions

    raise typer.Exit(print_completions(group))


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


@stages_app.command("pause")
def stages_pause(stage: StageName) -> None:
    """Every worker of the stage finishes what it holds and takes no more."""
    from streams.cli.operate import control

    raise typer.Exit(control(stage, "paused"))


@stages_app.command("resume")
def stages_resume(stage: StageName) -> None:
    """The stage takes records again."""
    from streams.cli.operate import control

    raise typer.Exit(control(stage, "running"))


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
