"""`reel` as a user meets it where nothing runs: help, wrong use, nobody there."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from streams.local.processes import free_port
from tests.command_line import Reel, command_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Reel:
    """At home in an empty folder."""
    return command_line(monkeypatch, capsys, tmp_path / "home")


def test_help_names_every_command() -> None:
    code = "import sys; from streams.cli import main; sys.argv = ['reel', '--help']; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = (
        "up demo submit watch get jobs cancel subscribe topology topics models stage dlt blobs"
    )
    for command in commands.split():
        assert f" {command} " in run.stdout


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    heavy = {"torch", "aiokafka", "confluent_kafka", "pydantic", "boto3", "asyncio"}
    code = f"import sys, streams.cli.app; print(*({heavy!r} & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("submit", "Missing argument"),
        ("dance", "No such command"),
        ("submit ball --steps 0", "--steps"),
        ("submit ball --size 64", "want WIDTHxHEIGHT"),
        ("submit ball --size 0x64", "want WIDTHxHEIGHT"),
        ("up --workers sampler", "want STAGE=N"),
        ("up --workers painter=2", "no stage 'painter'"),
        ("up --workers sampler=9", "sampler=9: 1 to 8 workers"),
        ("up --brokers 3", "--brokers 3 needs --broker apache"),
        ("up --broker apache --brokers 2", "one or three"),
        ("up --broker embedded --bootstrap localhost:1", "give one of them"),
        ("demo ball --broker pulsar", "pulsar"),
        ("stage pause painter", "no stage 'painter'"),
        ("cancel job --run 0", "--run"),
        ("dlt show sampler/3", "want STAGE/PARTITION/OFFSET"),
        ("dlt show painter!/3/17", "want STAGE/PARTITION/OFFSET"),
        ("dlt list --stage painter", "no stage 'painter' with dead letters"),
        ("dlt list --since yesterday", "--since 'yesterday': want 30s"),
        ("dlt redrive", "or --all"),
        ("dlt redrive --since 1h --rate fast", "--rate 'fast': want jobs a second"),
        ("dlt redrive job --all", "not both"),
        ("dlt redrive sampler/3/17 --stage sampler", "not both"),
        ("dlt redrive sampler/3/17 --tenant acme", "a letter knows its tenant"),
        ("dlt redrive --all", "say for the record --why"),
        ("dlt redrive --tenant acme --why", "--why"),
        ("dlt redrive sampler/x/17", "want STAGE/PARTITION/OFFSET"),
    ],
)
def test_wrong_use_is_told_on_stderr_with_exit_code_2(words: str, said: str, reel: Reel) -> None:
    run = reel(*words.split())
    assert (run.returncode, run.stdout) == (2, "")
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_setting_is_one_line_that_names_it(reel: Reel) -> None:
    run = reel("jobs", REEL_PARTITIONS="25")
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "reel: REEL_PARTITIONS must be a multiple of the 3 tiers",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "jobs",
        "submit ball",
        "watch job",
        "get job file",
        "subscribe",
        "cancel job",
        "dlt list",
        "dlt show sampler/3/17",
        "dlt redrive --all --why now",
    ],
)
def test_no_broker_is_one_line_with_exit_code_1(words: str, reel: Reel) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    run = reel(*words.split(), REEL_BOOTSTRAP=bootstrap)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines() == [
        f"reel: no Kafka broker answers at {bootstrap} (REEL_BOOTSTRAP);"
        " `reel up` starts a local one"
    ]


def test_a_sweep_says_what_would_go_and_goes_only_when_told(reel: Reel, tmp_path: Path) -> None:
    old = tmp_path / "acme" / "order-7" / "1" / "sampler" / ("5a" * 32)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"latents")
    os.utime(old, (0, 0))
    (old.parent / ("0f" * 32)).write_bytes(b"young")
    said = "blobs of open runs\t2\t12\t1\t7"
    dry = reel("blobs", "sweep", REEL_BLOBS=tmp_path.as_uri())
    assert (dry.returncode, said in dry.stdout.splitlines()) == (0, True)
    assert dry.stdout.splitlines()[0] == "kind\tobjects\tbytes\tto remove\tbytes to remove"
    assert "nothing was removed" in dry.stderr
    assert old.exists()
    done = reel("blobs", "sweep", "--apply", "--older-than", "2")
    assert (done.returncode, said in done.stdout.splitlines()) == (0, True)
    assert [path.name for path in old.parent.iterdir()] == ["0f" * 32]
    assert reel("blobs", "sweep", "--older-than", "0").returncode == 2


def test_a_model_that_is_not_there_is_wrong_use(reel: Reel, tmp_path: Path) -> None:
    run = reel("up", "--port", "0", "--model", str(tmp_path / "none"))
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        f"reel: no model in {tmp_path / 'none'}: want a WanPipeline folder"
    ]


def test_the_topology_is_printed_for_pipes_as_for_people(reel: Reel) -> None:
    run = reel("topology")
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert run.returncode == 0
    assert [row[0] for row in rows] == [
        "stage", "prompt", "sampler", "decoder", "finisher", "subscriber",
    ]  # fmt: skip
    assert rows[2][1:6] == [
        "prompts.cleaned", "reel.sampler", "latents.ready", "10s 60s 600s", "prompts.cleaned.dlt",
    ]  # fmt: skip


def test_a_busy_port_is_named(reel: Reel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run = reel("up", "--port", str(port))
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert f"port {port}" in run.stderr
    assert "busy" in run.stderr


def test_no_java_is_told(reel: Reel, tmp_path: Path) -> None:
    run = reel("up", "--broker", "apache", "--port", "0", PATH=str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "reel: Apache Kafka needs Java 17 or newer: java is not installed, or not on PATH"
    ]


def test_a_full_disk_is_told(reel: Reel, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    run = reel("up", "--port", "0")
    assert run.returncode == 2
    assert run.stderr.startswith("reel: no space in ")
