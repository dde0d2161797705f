"""docker-compose.yml and the Dockerfile, held against the topology and the settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams import topology
from streams.local.stack import StackPlan
from streams.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
WORKERS = tuple(stage.name for stage in topology.STAGES if stage.is_worker)
PROCESSES = (*WORKERS, "expirer")  # what runs for ever, of ours
BESIDES = {"kafka", "s3", "bucket", "topics", "expirer"}

Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(compose["services"], dict)
    return compose["services"]


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_there_is_one_service_per_worker_stage(services: dict[str, Service]) -> None:
    assert set(services) - BESIDES == set(WORKERS)
    assert [services[name]["command"] for name in WORKERS] == [[name] for name in WORKERS]


def test_every_image_of_ours_is_built_from_the_one_dockerfile(
    services: dict[str, Service], dockerfile: str
) -> None:
    declared = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    builds = {name: each["build"] for name, each in services.items() if "build" in each}
    assert set(builds) == {*PROCESSES, "topics"}
    for build in builds.values():
        assert build["context"] == "."
        assert "dockerfile" not in build
        assert {"COMPUTE", "EXTRAS"} <= set(build["args"]) <= declared
    assert len({build["args"]["COMPUTE"] for build in builds.values()}) == 1


def test_services_that_share_an_image_share_what_it_is_built_with(
    services: dict[str, Service],
) -> None:
    for image in {each["image"] for each in services.values()}:
        builds = [each.get("build") for each in services.values() if each["image"] == image]
        assert all(build == builds[0] for build in builds), image


def test_the_extras_of_the_images_exist(services: dict[str, Service]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {each["build"]["args"]["EXTRAS"] for each in services.values() if "build" in each}
    asked = {extra for words in extras for extra in words.split()}
    assert asked <= set(project["optional-dependencies"])


def test_workers_differ_from_each_other_only_in_model_and_image(
    services: dict[str, Service],
) -> None:
    environments = [dict(services[name]["environment"]) for name in PROCESSES]
    for environment in environments:
        environment.pop("REEL_MODEL", None)
    assert all(environment == environments[0] for environment in environments)
    assert all(services[name]["restart"] == "unless-stopped" for name in PROCESSES)


def test_the_expirer_is_the_module_that_the_local_stack_runs(services: dict[str, Service]) -> None:
    argv = StackPlan(Settings(), cache=ROOT).expirer_argv
    assert services["expirer"]["entrypoint"][1:] == list(argv)[1:]
    assert "command" not in services["expirer"]


def test_every_setting_that_is_given_exists_and_is_valid(
    services: dict[str, Service], dockerfile: str
) -> None:
    # `docker compose` hands these over as they stand; a variable nobody knows stops a worker.
    in_image = dict(re.findall(r"(REEL_\w+)=(\S+)", dockerfile))
    for name in (*PROCESSES, "topics"):
        given = in_image | services[name]["environment"]
        Settings(**{key.removeprefix("REEL_").lower(): value for key, value in given.items()})


def test_models_are_mounted_read_only_where_the_setting_says(services: dict[str, Service]) -> None:
    with_model = [name for name in WORKERS if "REEL_MODEL" in services[name]["environment"]]
    assert with_model
    for name in with_model:
        folder = services[name]["environment"]["REEL_MODEL"]
        assert any(volume.endswith(f":{folder}:ro") for volume in services[name]["volumes"])


def test_docker_waits_as_long_as_a_worker_may_drain(services: dict[str, Service]) -> None:
    graces = {services[name]["stop_grace_period"] for name in PROCESSES}
    assert graces == {f"{Settings.model_fields['grace_ms'].default // 1000}s"}


def test_metrics_are_exposed_inside_and_published_nowhere(
    services: dict[str, Service], dockerfile: str
) -> None:
    port = dict(re.findall(r"(REEL_METRICS_PORT)=(\d+)", dockerfile))["REEL_METRICS_PORT"]
    for name in PROCESSES:
        assert services[name]["expose"] == [port]
        assert "ports" not in services[name]
    assert f"127.0.0.1:{port}/healthz" in dockerfile


def test_whatever_is_published_listens_on_loopback_only(services: dict[str, Service]) -> None:
    published = [port for each in services.values() for port in each.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_workers_start_after_the_topics_and_the_bucket_are_there(
    services: dict[str, Service],
) -> None:
    for name in PROCESSES:
        waits = {who: how["condition"] for who, how in services[name]["depends_on"].items()}
        assert waits == dict.fromkeys(("topics", "bucket"), "service_completed_successfully")
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert "healthcheck" in services["kafka"]


def test_every_foreign_image_is_pinned(services: dict[str, Service]) -> None:
    foreign = {each["image"] for each in services.values() if "build" not in each}
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?", image) for image in foreign), foreign


def test_the_image_runs_as_nobody_special_and_installs_by_the_lock(dockerfile: str) -> None:
    runtime = dockerfile.split(" AS runtime\n")[1]
    assert re.search(r"^USER (?!root|0\b)\w+", runtime, re.MULTILINE)
    assert "USER root" not in runtime
    assert 'ENTRYPOINT ["python", "-m", "workers.main"]' in runtime
    assert ".ci/install" in dockerfile
    assert not re.search(r"\bpip3? install\b", dockerfile)


def test_both_computes_have_a_last_stage_of_their_own(dockerfile: str) -> None:
    assert dockerfile.rstrip().endswith("FROM runtime-${COMPUTE}")
    assert set(re.findall(r" AS runtime-(\w+)", dockerfile)) == {"cpu", "cuda"}


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("no docker client: docker-compose.yml is checked as YAML only")
    version = subprocess.run(
        [docker, "compose", "version"], capture_output=True, text=True, check=False, timeout=60
    )
    if version.returncode != 0:
        pytest.skip("this docker client has no compose: the file is checked as YAML only")
    config = subprocess.run(
        [docker, "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--services"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert config.returncode == 0, config.stderr
    assert set(config.stdout.split()) == {*WORKERS, *BESIDES}
