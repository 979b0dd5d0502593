"""Docker Compose itself reads every combination of the compose files, and every setting of .env reaches the server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests.support.live import ROOT

COMPOSE = shutil.which("docker-compose", path=str(ROOT / ".ops/bin")) or shutil.which("docker-compose")
WITH_GRAPHS = "compose.observability.yaml"
COMBINATIONS = [
    (name, *more)
    for name in ("compose.yaml", "compose.cpu.yaml", "compose.replicas.yaml")
    for more in ((), (WITH_GRAPHS,))
]
VARIABLES = sorted(str(field.alias) for field in Settings.model_fields.values())
SET_BY_THE_FILES = {"HOST", "PORT", "TTS_DATA_DIR", "TTS_SHUTDOWN_GRACE_S"}  # values that a container needs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(COMPOSE is None, reason="Docker Compose is not installed here: make containers"),
]


def resolved(tmp_path: Path, files: tuple[str, ...], dotenv: str, **environment: str) -> dict[str, Any]:
    """Copy the compose files to a folder with this .env, and return what Docker Compose reads from them."""
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".env").write_text(dotenv)
    options = [part for name in files for part in ("-f", name)]
    assert COMPOSE is not None
    done = subprocess.run(
        [COMPOSE, *options, "config", "--format", "json"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def servers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [service for service in content["services"].values() if "TTS_DATA_DIR" in service.get("environment", {})]


@pytest.mark.parametrize("files", COMBINATIONS, ids=" ".join)
def test_every_combination_is_valid_and_every_setting_of_the_env_file_reaches_the_server(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    wanted = {name: f"value-of-{name.lower()}" for name in VARIABLES if name not in SET_BY_THE_FILES}
    dotenv = "".join(f"{name}={value}\n" for name, value in wanted.items())
    content = resolved(tmp_path, files, dotenv, GRAFANA_PASSWORD="secret")
    found = servers(content)
    assert len(found) == (2 if files[0] == "compose.replicas.yaml" else 1)
    fixed = {"TTS_DEVICE"} if files[0] == "compose.cpu.yaml" else set()  # this file is for machines without a GPU
    for server in found:
        environment = server["environment"]
        missing = {name for name in wanted if environment.get(name) != wanted[name]} - fixed
        assert not missing
        assert (environment["HOST"], environment["PORT"], environment["TTS_DATA_DIR"]) == ("0.0.0.0", "8000", "/app")


@pytest.mark.parametrize("engine", ["csm", "dia", "espeak"])
@pytest.mark.parametrize("files", COMBINATIONS, ids=" ".join)
def test_the_environment_of_the_shell_chooses_the_engine(tmp_path: Path, files: tuple[str, ...], engine: str) -> None:
    content = resolved(tmp_path, files, "TTS_ENGINE=other\n", TTS_ENGINE=engine, GRAFANA_PASSWORD="secret")
    assert {server["environment"]["TTS_ENGINE"] for server in servers(content)} == {engine}


def test_grafana_without_a_password_is_refused_with_an_explanation(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="GRAFANA_PASSWORD"):
        resolved(tmp_path, ("compose.yaml", WITH_GRAPHS), "")
