"""`reel` as people use it: real processes, the demo model, the embedded broker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import pytest

from streams.local.processes import free_port

pytestmark = [pytest.mark.kafka, pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
REEL = [sys.executable, "-c", "from streams.cli import main; main()"]
GIVE_UP_S = 240.0


@dataclass
class Shell:
    """Runs `reel` at one home folder, in an empty working folder."""

    home: Path
    folder: Path
    temporary: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("REEL_")}
        ours = {"REEL_HOME": str(self.home), "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        return clean | ours | self.settings

    def reel(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*REEL, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
            check=False,
        )


class Up:
    """A `reel up` in the background; what it says is read as it comes."""

    def __init__(self, shell: Shell, *words: str) -> None:
        self.process = subprocess.Popen(
            [*REEL, "up", *words],
            cwd=shell.folder,
            env=shell.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.said.extend(iter(lines.readline, ""))

    def wait_for(self, words: str) -> str:
        """The first line with these words."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while True:
            for line in list(self.said):
                if words in line:
                    return line
            assert self.process.poll() is None, self.said
            assert time.monotonic() < give_up_s, self.said
            time.sleep(0.05)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(GIVE_UP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join()
        return code


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    # A dead worker's partitions come back soon.
    settings = {"REEL_SESSION_TIMEOUT_MS": "6000", "REEL_TORCH_THREADS": "1"}
    home, folder, temporary = (tmp_path_factory.mktemp(name) for name in ("home", "cwd", "tmp"))
    return Shell(home, folder, temporary, settings)


@pytest.fixture(scope="module")
def up(shell: Shell) -> Iterator[Up]:
    up = Up(shell, "--port", "0")
    try:
        up.wait_for("ready in")
        yield up
    finally:
        up.stop()


@pytest.fixture(scope="module")
def finished_job(shell: Shell, up: Up) -> str:
    run = shell.reel("submit", "a red circle", "--steps", "2", "--seed", "1", "--wait")
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 1
    return run.stdout.strip()


def frames_of(path: Path) -> tuple[int, int, int]:
    """Frames, width, height."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sum(1 for _ in container.decode(stream)), stream.width, stream.height


def test_the_demo_ends_with_a_video_and_leaves_nothing_else(shell: Shell) -> None:
    run = shell.reel("demo", "a red circle", "--steps", "2", "--frames", "5", "--out", "red.mp4")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "red.mp4\n"
    assert "sampler progress 2/2" in run.stderr
    assert frames_of(shell.folder / "red.mp4")[0] == 5
    assert [path.name for path in shell.folder.iterdir()] == ["red.mp4"]
    assert list(shell.temporary.glob("reel-demo-*")) == []


def test_a_job_is_watched_from_its_beginning_to_its_end(shell: Shell, finished_job: str) -> None:
    run = shell.reel("watch", finished_job)
    lines = run.stdout.splitlines()
    assert run.returncode == 0
    assert "prompt started" in lines[0]
    assert any("sampler progress 2/2" in line for line in lines)
    assert lines[-1].startswith("completed in ")


def test_a_video_is_got(shell: Shell, finished_job: str) -> None:
    run = shell.reel("get", finished_job, "got.mp4")
    assert (run.returncode, run.stdout) == (0, "got.mp4\n")
    assert frames_of(shell.folder / "got.mp4")[0] > 0


def test_the_jobs_are_listed(shell: Shell, finished_job: str) -> None:
    run = shell.reel("jobs", "--tenant", "local")
    heading, *rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert heading == ["job", "tenant", "tier", "status", "stage", "step", "age"]
    assert [finished_job, "local", "free", "completed", "finisher"] in [row[:5] for row in rows]
    assert shell.reel("jobs", "--tenant", "nobody").stdout.splitlines()[1:] == []


def test_a_subscriber_hears_of_it_as_json(shell: Shell, finished_job: str) -> None:
    with subprocess.Popen(
        [*REEL, "subscribe", "--group", "test.listener"],
        cwd=shell.folder, env=shell.environment, stdout=subprocess.PIPE, text=True,
    ) as listener:  # fmt: skip
        try:
            assert listener.stdout is not None
            heard = json.loads(listener.stdout.readline())
        finally:
            listener.terminate()
    assert (heard["job_id"], heard["status"]) == (finished_job, "completed")


def test_a_size_the_model_cannot_do_is_rejected_with_the_reason(shell: Shell, up: Up) -> None:
    run = shell.reel("submit", "a red circle", "--size", "63x64", "--wait")
    assert run.returncode == 1
    assert "rejected after" in run.stderr


def test_a_job_that_nobody_knows_cannot_be_watched_or_got(shell: Shell, up: Up) -> None:
    for words in (["watch", "nobody"], ["get", "nobody", "nobody.mp4"]):
        run = shell.reel(*words)
        assert (run.returncode, run.stderr) == (1, "reel: no job nobody\n")


def test_the_topics_are_as_they_must_be(shell: Shell, up: Up) -> None:
    run = shell.reel("topics", "check")
    assert (run.returncode, run.stdout) == (0, "")
    assert shell.reel("topics", "apply").stderr == "nothing to do\n"


def test_a_paused_stage_goes_on_when_it_is_resumed(shell: Shell, up: Up) -> None:
    assert shell.reel("stage", "pause", "prompt").returncode == 0
    job_id = shell.reel("submit", "a blue square", "--steps", "1").stdout.strip()
    run = shell.reel("get", job_id, "blue.mp4")
    assert (run.returncode, run.stderr) == (1, f"reel: not done yet: {job_id} is queued\n")
    assert shell.reel("stage", "resume", "prompt").returncode == 0
    assert shell.reel("watch", job_id).returncode == 0


def test_a_job_that_expired_is_redriven_to_its_video(shell: Shell, up: Up) -> None:
    late = shell.reel("submit", "a red circle", "--steps", "1", "--deadline", "0.001", "--wait")
    job_id = late.stdout.strip()
    assert late.returncode == 1
    assert "expired after" in late.stderr
    redrive = shell.reel("dlt", "redrive", job_id)
    assert (redrive.returncode, redrive.stdout) == (0, f"{job_id}\tlocal\trun 2 begun\n")
    watch = shell.reel("watch", job_id)
    assert watch.stdout.splitlines()[-1].startswith("completed in ")
    assert shell.reel("get", job_id, "redriven.mp4").returncode == 0
    again = shell.reel("dlt", "redrive", job_id)
    assert (again.returncode, again.stdout) == (
        1,
        f"{job_id}\tlocal\tleft alone: completed is final\n",
    )


def test_a_job_is_cancelled(shell: Shell, up: Up) -> None:
    assert shell.reel("stage", "pause", "prompt").returncode == 0
    job_id = shell.reel("submit", "a blue square", "--steps", "1").stdout.strip()
    cancel = shell.reel("cancel", job_id)
    assert (cancel.returncode, cancel.stderr) == (0, f"{job_id}: cancel of run 1 is on its way\n")
    assert shell.reel("stage", "resume", "prompt").returncode == 0
    watch = shell.reel("watch", job_id)
    assert (watch.returncode, watch.stdout.splitlines()[-1].split()[0]) == (1, "cancelled")
    assert (
        shell.reel("cancel", job_id).stderr == f"reel: job {job_id} has ended already: cancelled\n"
    )


def test_a_killed_worker_is_started_again_and_said_so(shell: Shell, up: Up) -> None:
    stack = json.loads((shell.home / "stack.json").read_text())
    os.kill(stack["workers"]["finisher"], signal.SIGKILL)
    up.wait_for("finisher died (exit -9), starts again in 0.5 s")
    assert shell.reel("submit", "a red circle", "--steps", "1", "--wait").returncode == 0


def test_a_second_stack_at_the_same_home_is_refused(shell: Shell, up: Up) -> None:
    run = shell.reel("up", "--port", "0")
    assert run.returncode == 2
    assert run.stderr.startswith("reel: a stack runs already in ")


def test_a_broker_of_yours_that_is_not_there_fails(shell: Shell, tmp_path: Path) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    run = shell.reel("up", "--bootstrap", bootstrap, "--dir", str(tmp_path))
    assert run.returncode == 1
    assert bootstrap in run.stderr


def test_a_folder_that_is_no_model_is_wrong_use(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    home = str(tmp_path / "home")
    run = shell.reel("up", "--port", "0", "--dir", home, "--model", str(tmp_path))
    assert run.returncode == 2, run.stderr
    assert str(tmp_path) in run.stderr
    assert "Traceback" not in run.stderr


def test_stopping_leaves_no_process_and_no_stack_file(shell: Shell, tmp_path: Path) -> None:
    other = replace(shell, home=tmp_path / "home")
    up = Up(other, "--port", "0")
    up.wait_for("ready in")
    workers = json.loads((other.home / "stack.json").read_text())["workers"]
    assert up.stop() == 0
    assert not (other.home / "stack.json").exists()
    assert [pid for pid in workers.values() if Path(f"/proc/{pid}").exists()] == []
