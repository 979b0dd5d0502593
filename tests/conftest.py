"""Fixtures that several folders share: one offline server for the whole session, the official client, a recogniser."""

from __future__ import annotations

import gc
import hashlib
import os
import random
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
import structlog
from _pytest.scope import Scope

from tests.support.ears import Recogniser
from tests.support.live import serving

# httpx gives up after 5 s by default. On a busy machine, an answer can take longer.
httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0

LONGEST_ID = 200  # characters of one value in the name of a test

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _no_hub_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the Hugging Face cache and login of the user who runs the tests: the server would use them."""
    home = tmp_path_factory.mktemp("hub_home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HOME", str(home))
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """Log exceptions without the values of variables, as the server does. structlog's default formats all values, which
    can take a second for each exception."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server with the offline voice."""
    with serving(tmp_path_factory.mktemp("data")) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def recogniser() -> Recogniser:
    return Recogniser()


@pytest.fixture(scope="session")
def tiny_csm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny CSM checkpoint with random weights. Tests only read it."""
    from tests.support.random_csm import fabricate_csm

    return fabricate_csm(tmp_path_factory.mktemp("tiny_csm"))


@pytest.fixture(scope="session")
def tiny_dia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Dia checkpoint with random weights. Tests only read it."""
    from tests.support.random_dia import fabricate_dia

    return fabricate_dia(tmp_path_factory.mktemp("tiny_dia"))


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    """An HTTP client of the server with the offline voice."""
    with httpx.Client(base_url=server, timeout=60) as http_client:
        yield http_client


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models: a second thread only costs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of `-n auto`. Tests wait for processes and timers for a quarter of their time, so
    more processes than cores use the cores better."""
    cores = os.cpu_count() or 1
    return cores + (cores + 1) // 2


def pytest_configure() -> None:
    gc.disable()  # until all tests are collected: there is little garbage yet


def pytest_collection_finish() -> None:
    """Leave all objects of the collection out of later garbage collections.

    With 12,000 tests and all modules, each call of gc.collect(), as when a model is unloaded, would take a second.
    """
    gc.freeze()
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the slow tests of a file in one process of `make slow`, so that a checkpoint or an image is made only once.

    Files whose models need several gigabytes have a mark of their own: they all run in the same process.
    """
    if item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle",
        metavar="SEED",
        help="Run the test files, and the tests within each file, in an order drawn from SEED. A test must not depend "
        "on the tests before it.",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle whole files and the tests within each. A fixture of a module or session is still built once per file.

    With a parametrized fixture of a module, pytest has grouped the tests by parameter. The groups stay together.
    """
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    draw = random.Random(seed)
    files: dict[object, dict[object, list[pytest.Item]]] = {}
    for item in items:
        files.setdefault(item.path, {}).setdefault(_group(item), []).append(item)
    shuffled_files = list(files.values())
    draw.shuffle(shuffled_files)
    items.clear()
    for groups in shuffled_files:
        shuffled_groups = list(groups.values())
        draw.shuffle(shuffled_groups)
        for group in shuffled_groups:
            draw.shuffle(group)
            items.extend(group)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Shorten long values in the names of tests.

    pytest puts the name of the running test into an environment variable. With a long name, no process can be started.
    """
    if not isinstance(val, str | bytes) or len(val) <= LONGEST_ID:
        return None
    content = val.encode("utf-8", "surrogatepass") if isinstance(val, str) else val
    return f"{argname}_{len(val)}_{hashlib.sha256(content).hexdigest()[:8]}"


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("--shuffle")
    return None if seed is None else f"shuffled: --shuffle {seed}"


def _group(item: pytest.Item) -> tuple[tuple[str, int], ...]:
    """The parameters of fixtures that live longer than a test. Each change of one builds the fixture anew."""
    call = getattr(item, "callspec", None)
    if call is None:
        return ()
    return tuple(
        (name, index) for name, index in sorted(call.indices.items()) if call._arg2scope[name] is not Scope.Function
    )
