"""What is in docker/: as its own tools read it, and as the rest of the repository says."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from alembic import command
from alembic.script import ScriptDirectory

from iro_server.settings import Settings
from iro_server.store import upgrade
from iro_server.store.database import connect
from tests.docker.envfiles import read

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SECRETS = {"POSTGRES_PASSWORD": "one", "IRO_ENGINE_KEY": "other", "IRO_GRADER_SERVICE_KEY": "third"}
RELAXED = {"seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"}
COMPOSITIONS = [(), ("gpu",), ("graders",), ("gpu", "graders")]
MANIFESTS = sorted((DOCKER / "k8s").rglob("*.yaml"))
ENV_FILES = sorted((DOCKER / "env").glob("*.env"))
NOT_SETTINGS = {"IRO_HOME"}  # read before settings are


def program(name: str) -> str:
    """Of the environment that runs the tests, or of the machine; skips without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"needs {name}")


def check(*command: str | Path, **more: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def composed(names: tuple[str, ...]) -> dict:
    files = [
        option for name in ("compose", *(f"compose.{name}" for name in names)) for option in ("-f", f"{name}.yaml")
    ]
    command = (
        program("docker-compose"),
        "--project-directory",
        str(DOCKER),
        "--env-file",
        str(DOCKER / ".env.example"),
    )
    files = [str(DOCKER / part) if part.endswith(".yaml") else part for part in files]
    return json.loads(check(*command, *files, "config", "--format", "json", **SECRETS))


def documents() -> list[dict]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def pods() -> dict[str, dict]:
    """The pod specification of each Deployment and StatefulSet by name."""
    workloads = [document for document in documents() if document["kind"] in ("Deployment", "StatefulSet")]
    return {workload["metadata"]["name"]: workload["spec"]["template"]["spec"] for workload in workloads}


@pytest.mark.parametrize("names", COMPOSITIONS, ids="+".join)
def test_compose_takes_the_files_and_publishes_the_server_alone_on_loopback(names):
    services = composed(names)["services"]
    assert set(services) == {"setup", "server", "worker", "vllm", "postgres"} | ({"graders"} & set(names))
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"server"}
    assert {port["host_ip"] for port in published["server"]} == {"127.0.0.1"}
    for name in ("setup", "server", "worker", "vllm"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]
        assert (DOCKER.parent / services[name]["build"]["dockerfile"]).exists()
    assert services["server"]["environment"]["IRO_JOB_CONCURRENCY"] == "0"
    assert int(services["worker"]["environment"]["IRO_JOB_CONCURRENCY"]) >= 1


def test_only_graders_are_less_confined_and_they_have_neither_data_nor_secrets_nor_a_way_out():
    composition = composed(("graders",))
    services = composition["services"]
    graders = services.pop("graders")
    assert set(graders["security_opt"]) == RELAXED | {"no-new-privileges:true"}
    assert not any(RELAXED & set(service.get("security_opt", ())) for service in services.values())
    assert graders["read_only"] and graders["cap_drop"] == ["ALL"]
    assert int(graders["mem_limit"]) and graders["pids_limit"]
    assert "volumes" not in graders and "ports" not in graders
    assert set(graders["environment"]) == {"IRO_HOST", "IRO_PORT", "IRO_GRADER_SERVICE_KEY"}
    assert set(graders["networks"]) == {"graders"} and composition["networks"]["graders"]["internal"]
    assert {name for name, service in services.items() if "graders" in service["networks"]} == {"server", "worker"}
    for name in ("server", "worker"):
        assert services[name]["environment"]["IRO_GRADER_SERVICE"] == "http://graders:8002"
        assert (
            services[name]["environment"]["IRO_GRADER_SERVICE_KEY"] == graders["environment"]["IRO_GRADER_SERVICE_KEY"]
        )


def test_graders_have_no_volume_and_only_server_and_worker_reach_them_on_a_cluster():
    assert set(pods()["graders"]) & {"volumes"} and pods()["graders"]["volumes"][0]["emptyDir"]
    policies = [document for document in documents() if document["kind"] == "NetworkPolicy"]
    by_name = {policy["metadata"]["name"]: policy["spec"] for policy in policies}
    graders = by_name["graders"]
    assert graders["podSelector"] == {"matchLabels": {"app": "graders"}}
    assert set(graders["policyTypes"]) == {"Ingress", "Egress"} and "egress" not in graders
    (source,) = graders["ingress"][0]["from"]
    assert source["podSelector"]["matchExpressions"][0]["values"] == ["server", "worker"]
    assert by_name["names"]["podSelector"]["matchExpressions"] == [
        {"key": "app", "operator": "NotIn", "values": ["graders"]}
    ]


def test_the_gpu_composition_differs_in_vllm_alone():
    plain, gpu = composed(())["services"], composed(("gpu",))["services"]
    assert {name for name in plain if plain[name] != gpu[name]} == {"vllm"}
    assert gpu["vllm"]["build"]["target"] == "vllm-gpu"
    assert "float32" not in gpu["vllm"]["environment"]["ENGINE_FLAGS"]


def test_the_number_of_workers_is_a_setting_of_env_in_all_compositions(monkeypatch):
    assert {composed(names)["services"]["worker"]["scale"] for names in COMPOSITIONS} == {1}
    monkeypatch.setenv("WORKERS", "3")
    assert {composed(names)["services"]["worker"]["scale"] for names in COMPOSITIONS} == {3}
    assert "--scale" not in (DOCKER / "README.md").read_text()


def test_only_the_setup_of_a_cluster_reads_the_hubs_token():
    readers = {
        container["name"]
        for pod in pods().values()
        for container in (*pod.get("initContainers", ()), *pod["containers"])
        if any(variable["name"] == "HF_TOKEN" for variable in container.get("env", ()))
    }
    assert readers == {"setup"}


def test_compose_refuses_to_start_without_secrets():
    compose = program("docker-compose")
    command = [compose, "-f", str(DOCKER / "compose.yaml"), "--env-file", str(DOCKER / ".env.example"), "config"]
    bare = {name: value for name, value in os.environ.items() if name not in SECRETS}
    refused = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert refused.returncode != 0 and "is missing in .env" in refused.stderr


def test_every_variable_that_compose_asks_for_is_explained():
    asked = {name for path in DOCKER.glob("compose*.yaml") for name in re.findall(r"\$\{([A-Z_]+)", path.read_text())}
    lines = (DOCKER / ".env.example").read_text().splitlines()
    for name in asked:
        (place,) = [at for at, line in enumerate(lines) if line.startswith(f"{name}=")]
        assert lines[place - 1].startswith("# ")
    assert asked == {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize("path", ENV_FILES, ids=lambda path: path.name)
def test_each_iro_variable_is_a_setting(path):
    for name in read(path):
        if not name.startswith("IRO_") or name in NOT_SETTINGS:
            continue
        assert name.removeprefix("IRO_").lower() in Settings.model_fields, name


def test_the_settings_that_the_files_make_are_valid(monkeypatch, tmp_path):
    for service in ("server", "worker"):
        for name, value in (read(DOCKER / "env/iro.env") | read(DOCKER / f"env/{service}.env")).items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        assert settings.url == "postgresql+psycopg://iro@postgres:5432/iro"
        assert settings.grader_environment("").base_url == "http://server:8000/v1"
        assert not settings.grader_environment("").any_endpoint


def test_no_secret_is_in_a_file_that_is_committed():
    for name in (*SECRETS, "HF_TOKEN"):
        assert f"\n{name}=\n" in (DOCKER / ".env.example").read_text()
    for path in ENV_FILES:
        assert not [name for name in read(path) if re.search("PASSWORD|KEY|TOKEN", name)]


def test_hadolint_finds_nothing():
    check(program("hadolint"), DOCKER / "Dockerfile")


def test_what_the_images_copy_exists_and_is_sent_to_the_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in sent, f"{source} is not in .dockerignore"
    assert all((ROOT / source).exists() for source in sent)


def test_images_run_as_a_user_without_rights_and_say_whether_they_are_well():
    stages = re.split(r"^FROM .* AS ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.split()[0]: stage for stage in stages}
    for name in ("iro", "vllm-cpu", "vllm-gpu"):
        assert "\nUSER 10001\n" in by_name[name]
    for name in ("server", "worker", "graders", "vllm-cpu", "vllm-gpu"):
        assert "\nHEALTHCHECK " in by_name[name]


@pytest.mark.parametrize("path", sorted(DOCKER.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path):
    check("bash", "-n", path)
    check(program("shellcheck"), "--external-sources", "--source-path=SCRIPTDIR", path)
    sourced = path.read_text().startswith("# shellcheck shell")
    assert bool(path.stat().st_mode & stat.S_IXUSR) != sourced


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifest(path):
    check(program("kubernetes-validate"), "--strict", "--quiet", path)


def test_the_config_maps_say_what_the_env_files_say():
    maps = {
        document["metadata"]["name"]: document["data"] for document in documents() if document["kind"] == "ConfigMap"
    }
    for name in ("iro", "server", "worker", "graders", "postgres"):
        assert maps[name] == read(DOCKER / f"env/{name}.env")
    gpu = read(DOCKER / "env/vllm-cpu.env") | read(DOCKER / "env/vllm-gpu.env")
    assert maps["vllm"] == {name: value for name, value in gpu.items() if not name.startswith("VLLM_CPU_")}


def test_pods_find_what_they_name():
    known = {(document["kind"], document["metadata"]["name"]) for document in documents()}
    for name, pod in pods().items():
        assert ("Service", name) in known or name == "worker"
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in known
        for container in pod["containers"] + pod.get("initContainers", []):
            for source in container["envFrom"]:
                assert ("ConfigMap", source["configMapRef"]["name"]) in known
            for script in container.get("args", []):
                assert (DOCKER / script.removeprefix("/iro/")).exists()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]} | {"database"}


def test_pods_have_no_rights_and_no_service_writes_into_their_settings():
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"] and pod["enableServiceLinks"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            } | ({"procMount": "Unmasked"} if container["name"] == "graders" else {})
            assert {"requests", "limits"} <= set(container["resources"])
    (vllm,) = pods()["vllm"]["containers"]
    gpus = {variable["name"]: variable.get("value") for variable in vllm["env"]}["ENGINE_GPUS"]
    assert int(gpus) == vllm["resources"]["limits"]["nvidia.com/gpu"]


def test_up_writes_secrets_once_and_starts_what_it_is_told(tmp_path):
    copy = shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env"))
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *cat*) echo sk-iro-first;; esac\n')
    fake.chmod(0o755)
    path = {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    told = check(copy / "up.sh", "gpu", **path)
    assert "http://127.0.0.1:8000/v1" in told and "sk-iro-first" in told
    (up,) = [line for line in (tmp_path / "calls").read_text().splitlines() if " up " in line]
    assert up.startswith("compose --file compose.yaml --file compose.gpu.yaml up") and "--remove-orphans" in up
    written = read(copy / ".env")
    assert stat.S_IMODE((copy / ".env").stat().st_mode) == 0o600
    assert len({*(written[name] for name in SECRETS), ""}) == 4
    check(copy / "up.sh", **path)
    assert read(copy / ".env") == written
    (copy / ".env").write_text("POSTGRES_PASSWORD=mine\nIRO_ENGINE_KEY=too\nPORT=8000\n")  # of an earlier version
    check(copy / "up.sh", "graders", **path)
    upgraded = read(copy / ".env")
    assert (upgraded["POSTGRES_PASSWORD"], upgraded["IRO_ENGINE_KEY"]) == ("mine", "too")
    assert upgraded["IRO_GRADER_SERVICE_KEY"]


def test_up_succeeds_after_a_restore_which_leaves_no_first_key(tmp_path):
    copy = shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env"))
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\ncase "$*" in *first.key*) exit 1;; esac\n')
    docker.chmod(0o755)
    output = check(copy / "up.sh", PATH=f"{docker.parent}{os.pathsep}{os.environ['PATH']}")
    assert "http://127.0.0.1:8000/v1 answers" in output and "first key:" not in output


@pytest.mark.parametrize("path", ["/v1/health", "/health"])
@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_a_services_probe_fails_unless_the_service_can_serve(path, status, exit_status):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = [str(DOCKER / "bin/http-health.sh"), path, "1"]
        environment = os.environ | {"IRO_PORT": str(server.server_port)}
        assert subprocess.run(probe, env=environment).returncode == exit_status
        server.shutdown()
    assert subprocess.run(probe, env=environment).returncode != 0  # nothing listens


def test_the_model_is_prepared_without_data_and_database(tmp_path):
    iro, models = tmp_path / "bin" / "iro", tmp_path / "models"
    iro.parent.mkdir()
    iro.write_text('#!/bin/sh\n[ "$1 $2 $3" = "model prepare m" ] && echo /models/m\n')
    iro.chmod(0o755)
    environment = {"PATH": f"{iro.parent}{os.pathsep}{os.environ['PATH']}", "MODEL": "m", "IRO_HOME": str(models)}
    done = subprocess.run([DOCKER / "bin/prepare-model.sh"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "model: /models/m\n")


def test_setup_brings_the_tables_of_an_earlier_version_up(tmp_path):
    data, programs = tmp_path / "data", tmp_path / "bin"
    (programs / "bin").mkdir(parents=True)
    engine = connect(Settings(data_dir=data))
    config = upgrade._config()
    (earlier,) = ScriptDirectory.from_config(config).get_revision("head")._all_down_revisions
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, earlier)
    head = upgrade.revisions(engine)[1]
    assert upgrade.revisions(engine) == (earlier, head) and earlier != head
    setup = programs / "setup.sh"
    setup.write_text((DOCKER / "bin/setup.sh").read_text())
    for path, text in ((setup, None), (programs / "prepare-model.sh", "#!/bin/sh\n")):
        path.write_text(path.read_text() if text is None else text)
        path.chmod(0o755)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "IRO_HOME": str(tmp_path), "IRO_DATA_DIR": str(data)}
    done = subprocess.run([setup], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert upgrade.revisions(engine) == (head, head) and (data / "first.key").read_text().startswith("sk-")


def test_setup_keeps_the_first_key_while_the_database_is_away(tmp_path):
    iro, data = tmp_path / "bin" / "iro", tmp_path / "data"
    iro.parent.mkdir()
    data.mkdir()
    iro.write_text('#!/bin/sh\n[ "$1" = model ]\n')  # `iro keys` fails
    iro.chmod(0o755)
    (data / "first.key").write_text("sk-iro-first\n")
    path = f"{iro.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MODEL": "m", "IRO_HOME": str(tmp_path), "IRO_DATA_DIR": str(data)}
    assert subprocess.run([DOCKER / "bin/setup.sh"], env=environment, capture_output=True).returncode != 0
    assert (data / "first.key").read_text() == "sk-iro-first\n"
