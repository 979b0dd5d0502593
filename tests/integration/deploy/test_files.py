"""Container files agree with each other and with the server: ports, folders, grace periods, variables, metrics."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import socketserver
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metrics import Metrics
from app.settings import PRIVATE_FOLDERS, Settings
from app.types import DeviceState, Load
from tests.integration.deploy.image import context, read, words
from tests.support.live import ROOT
from tools import supply

pytestmark = pytest.mark.unit

COMPOSE = ["compose.yaml", "compose.cpu.yaml", "compose.replicas.yaml"]
FOLDERS = PRIVATE_FOLDERS | {"models"}
VARIABLES = {str(field.alias) for field in Settings.model_fields.values()}


def compose(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


def servers(name: str) -> dict[str, dict[str, Any]]:
    return {key: each for key, each in compose(name)["services"].items() if "build" in each}


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_lists_the_server_first_and_passes_known_variables(name: str) -> None:
    first = next(iter(compose(name)["services"].values()))
    for each in servers(name).values():
        assert each["env_file"] == [{"path": ".env", "required": False}]
        # Values of .env that would break the container are replaced.
        fixed = {"HOST": "0.0.0.0", "PORT": "8000", "TTS_DATA_DIR": "/app"}
        assert fixed.items() <= each["environment"].items()
        assert each["read_only"] is True
        assert each["tmpfs"] == ["/tmp:exec,mode=1777"]
    for variable in ("TTS_ENGINE", "HF_TOKEN", "CSM_DEVICE_MAP"):
        assert first["environment"][variable].startswith(f"${{{variable}:-")
    assert set(first["environment"]) <= VARIABLES


@pytest.mark.parametrize("name", COMPOSE)
def test_every_data_folder_is_a_named_volume(name: str) -> None:
    named = set(compose(name)["volumes"])
    for each in servers(name).values():
        mounts = dict(mount.split(":")[::-1] for mount in each["volumes"])
        assert set(mounts) == {f"/app/{folder}" for folder in FOLDERS}
        assert set(mounts.values()) <= named


def test_replicas_share_all_folders_except_cache_and_logs() -> None:
    one, two = ({m.split(":")[1]: m.split(":")[0] for m in e["volumes"]} for e in servers(COMPOSE[2]).values())
    assert {folder for folder in one if one[folder] != two[folder]} == {"/app/audio_cache", "/app/logs"}


@pytest.mark.parametrize("name", COMPOSE)
def test_stop_grace_period_is_longer_than_the_shutdown_grace(name: str) -> None:
    for each in servers(name).values():
        grace_s = int(each["environment"]["TTS_SHUTDOWN_GRACE_S"])
        assert int(each["stop_grace_period"].removesuffix("s")) > grace_s


def test_kubernetes_pod_has_the_grace_folders_and_user_of_the_image() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/k8s/server.yaml").read_text()))
    pod = documents[0]["spec"]["template"]["spec"]
    [server] = pod["containers"]
    environment = {each["name"]: each.get("value") for each in server["env"]}
    assert set(environment) <= VARIABLES
    assert pod["terminationGracePeriodSeconds"] > int(environment["TTS_SHUTDOWN_GRACE_S"]) + 5
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    assert environment["TTS_JOBS_MAX_CHARS"] == "0"
    assert set(mounts) == {*(f"/app/{folder}" for folder in FOLDERS - {"books", "hub", "jobs"}), "/tmp"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    # these folders stay when Kubernetes replaces the pod
    for folder in ("models", "cloned_voices", "voice_references", "conversations", "lexicons"):
        claim = volumes[mounts[f"/app/{folder}"]]["persistentVolumeClaim"]["claimName"]
        claims = list(yaml.safe_load_all((ROOT / "deploy/k8s/voices.yaml").read_text()))
        assert claim in {each["metadata"]["name"] for each in claims}
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert server["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()


def test_port_8000_is_the_default_everywhere() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "http://localhost:8000/v1" in readme
    assert compose("compose.yaml")["services"]["tts"]["ports"] == ["${PORT:-8000}:8000"]
    assert compose("compose.replicas.yaml")["services"]["balancer"]["ports"] == ["${PORT:-8000}:8000"]
    assert Settings.model_fields["port"].default == 8000
    assert "bind :8000" in (ROOT / "deploy/k8s/haproxy.cfg").read_text()


def test_env_example_names_only_known_variables() -> None:
    named = re.findall(r"(?m)^([A-Z_]+)=", (ROOT / ".env.example").read_text())
    assert named
    assert set(named) <= VARIABLES
    assert "hf_" not in (ROOT / ".env.example").read_text()


# ---- the image


def test_dockerfile_has_all_targets_and_runs_the_server() -> None:
    arguments, stages = read(ROOT / "Dockerfile")
    assert arguments["PYTHON_VERSION"] == "3.12"
    names = [stage.name for stage in stages]
    assert {"cpu", "cuda", "with-weights"} <= set(names)
    assert stages[-1].base == "cuda"  # the last stage is the default target of a build
    [server] = [stage for stage in stages if stage.name == "server"]
    steps = {step.word: step.rest for step in server.steps}
    assert words(steps["ENTRYPOINT"])[0].endswith("tini")
    assert "app.healthcheck" in steps["HEALTHCHECK"]
    assert steps["USER"] == "10001:10001"
    assert words(steps["CMD"]) == ["python", "-m", "app.main"]


def test_cuda_image_has_what_triton_needs() -> None:
    """The image has a C compiler, and a volume for Triton's cache: otherwise each new container compiles the kernels
    again."""
    _, stages = read(ROOT / "Dockerfile")
    [cuda] = [stage for stage in stages if stage.name == "cuda"]
    installed = " ".join(step.rest for step in cuda.steps if step.word == "RUN")
    assert {"gcc", "libc6-dev"} <= set(installed.split())
    [cache] = re.findall(r"TRITON_CACHE_DIR=(\S+)", " ".join(step.rest for step in cuda.steps if step.word == "ENV"))
    assert cache.startswith("/app/models/")
    assert [step.rest for step in cuda.steps if step.word == "USER"][-1] == "10001:10001"


def test_image_libraries_are_checked_against_their_hashes() -> None:
    _, stages = read(ROOT / "Dockerfile")
    for name, torch in (("libraries-cuda", "-r locks/torch-cuda.txt"), ("libraries-cpu", "--no-deps torch")):
        [stage] = [stage for stage in stages if stage.name == name]
        [installation] = [step.rest for step in stage.steps if step.word == "RUN"]
        assert torch in installation
        assert "--require-hashes --no-deps -r locks/server.txt" in installation
    locked = {"espeakng-loader", "resemble-perth", "pocketsphinx", "transformers", "yt-dlp", "deno", "yt-dlp-ejs"}
    assert locked <= supply.pinned(supply.SERVER).keys()


def test_no_image_layer_contains_a_token() -> None:
    _, stages = read(ROOT / "Dockerfile")
    for stage in stages:
        for step in stage.steps:
            if step.word in ("ARG", "ENV", "COPY"):
                assert "TOKEN" not in step.rest
            elif "HF_TOKEN" in step.rest:
                assert any(flag.startswith("--mount=type=secret,id=hf_token") for flag in step.flags)


def decoys(root: Path) -> None:
    """Create files that must not be part of a build."""
    for name in (
        ".env",
        ".env.local",
        "app/.env",
        "data/models/weights.safetensors",
        "app/__pycache__/main.cpython-312.pyc",
        "app/api/old.pyc",
        ".git/config",
        ".venv/bin/python",
        "tests/test_x.py",
        "hf_token",
        "voices/me.wav",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("secret")
    (root / "locks").mkdir(parents=True)
    for name in (
        "Dockerfile",
        ".dockerignore",
        "pyproject.toml",
        "README.md",
        *SENT - {"app/static/index.html", "app/main.py"},
    ):
        shutil.copy(ROOT / name, root / name)
    for name in ("app/main.py", "app/static/index.html"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


SENT = {
    *("LICENSE", "NOTICE", "constraints.txt", "locks/server.txt", "locks/torch-cuda.txt"),
    *("app/static/index.html", "app/main.py"),
}


def test_build_context_has_only_the_needed_files(tmp_path: Path) -> None:
    decoys(tmp_path)
    assert set(context(tmp_path)) == SENT
    ours = context(ROOT)
    assert "app/main.py" in ours
    assert not [name for name in ours if not re.match(r"app/|locks/|constraints\.txt|LICENSE|NOTICE", name)]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker client")
def test_docker_client_sends_the_same_build_context(tmp_path: Path) -> None:
    """The Docker client reads .dockerignore and packs the files. The fake engine here only unpacks them."""
    decoys(tmp_path / "source")
    sent: list[str] = []

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self._answer(b"OK" if "_ping" in self.path else b'{"ApiVersion": "1.44", "Os": "linux", "Arch": "amd64"}')

        def do_POST(self) -> None:
            body = b""
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            with tarfile.open(fileobj=io.BytesIO(body), mode="r:*") as packed:
                sent.extend(member.name for member in packed if member.isfile())
            self._answer(json.dumps({"stream": "read"}).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Api-Version", "1.44")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "client"

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    socket = tmp_path / "engine.sock"
    with Server(str(socket), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0", "HOME": str(tmp_path)}
        done = subprocess.run(
            ["docker", "build", str(tmp_path / "source")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        server.shutdown()
    assert sent, done.stderr
    assert set(sent) - {"Dockerfile", ".dockerignore"} == SENT  # Docker's client always sends these two files


# ---- graphs


def test_dashboard_uses_only_existing_metrics() -> None:
    metrics = Metrics()
    metrics.watch_load(lambda: Load(0, 1, 0, 1))
    metrics.watch_devices(lambda: [DeviceState("cpu", "", Load(0, 1, 0, 1))])
    exported_metrics = set(re.findall(r"# TYPE (\S+)", metrics.text().decode()))
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/speech.json").read_text())
    used_metrics = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\btts_\w+", target["expr"])
    }
    scaling = (ROOT / "deploy/keda/scaledobject.yaml").read_text()
    used_metrics |= set(re.findall(r"\btts_\w+", scaling))
    assert len(used_metrics) > 8
    assert {name.removesuffix("_bucket") for name in used_metrics} <= exported_metrics
