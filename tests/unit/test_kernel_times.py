"""The times of kernels are measured once for each GPU and version, and a file with other times is not used."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.engines.shared.step_graph import StepGraph
from app.nn.kernels.sets import TORCH, Kernels
from app.runtime import kernel_times as module
from app.runtime.cuda_graphs import Body, GraphCapture
from app.runtime.kernel_times import KernelTimes, kernel_times, sources_digest

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
FACTS = {"card": "H200", "torch": "2.13"}
SETS = (TORCH, dataclasses.replace(TORCH, name="triton"))


def test_times_are_found_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "new" / "times.json"
    KernelTimes(path, FACTS).add(1, {"torch": 0.01, "triton": 0.002})
    again = KernelTimes(path, FACTS)
    assert again.of(1, ["triton", "torch"]) == {"torch": 0.01, "triton": 0.002}
    assert again.of(2, ["triton", "torch"]) is None
    assert again.of(1, ["torch"]) is None
    assert again.of(1, ["torch", "triton", "triton-linear"]) is None
    again.add(2, {"torch": 1.0, "triton": 2.0})
    assert KernelTimes(path, FACTS).of(1, ["triton", "torch"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"facts": 3, "seconds": {}}',
        '{"facts": {"card": "H200", "torch": "2.13"}, "seconds": {"1": {"torch": "fast"}}}',
        '{"facts": {"card": "H200", "torch": "2.13"}, "seconds": {"1": {"torch": -1.0}}}',
        '{"facts": {"card": "H200", "torch": "2.13"}, "seconds": {"1": {"torch": NaN}}}',
        '{"facts": {"card": "H200", "torch": "2.13"}, "seconds": [1]}',
        '{"facts": {"card": "H200", "torch": "2.13"}, "seconds": {"one": {"torch": 1.0}}}',
    ],
)
def test_damaged_file_is_ignored_and_replaced(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    found = KernelTimes(path, FACTS)
    assert found.of(1, ["torch"]) is None
    assert [record.getMessage().count("is damaged") for record in caplog.records] == [1]
    found.add(1, {"torch": 1.0})
    assert KernelTimes(path, FACTS).of(1, ["torch"]) == {"torch": 1.0}


@pytest.mark.parametrize("other", [{"card": "A100"}, {"torch": "2.14"}, {"driver": "580"}])
def test_times_of_another_machine_are_ignored(
    other: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "times.json"
    KernelTimes(path, FACTS | other).add(1, {"torch": 1.0})
    caplog.set_level(logging.INFO)
    assert KernelTimes(path, FACTS).of(1, ["torch"]) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the kernels are timed again, because {path} has times for another {next(iter(other))}"
    ]


def test_folder_that_is_read_only_does_not_stop_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = KernelTimes(tmp_path / "file" / "times.json", FACTS)
    found.add(1, {"torch": 1.0})
    assert "can't be stored" in caplog.text
    assert found.of(1, ["torch"]) == {"torch": 1.0}


def test_facts_are_those_of_the_gpu_and_the_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(module, "driver_version", lambda: "580.65")
    devices = [torch.device("cuda", 0)]
    found = kernel_times(tmp_path, devices, "a model")
    found.add(1, {"torch": 1.0})
    [path] = tmp_path.iterdir()
    facts = json.loads(path.read_text())["facts"]
    assert facts["card"] == "NVIDIA H200"
    assert facts["compute capability"] == "9.0"
    assert facts["driver"] == "580.65"
    assert facts["torch"] == torch.__version__
    assert kernel_times(tmp_path, devices, "a model").of(1, ["torch"])
    assert not kernel_times(tmp_path, devices, "another model").of(1, ["torch"])
    card.name = "NVIDIA A100"
    assert not kernel_times(tmp_path, devices, "a model").of(1, ["torch"])


def test_every_change_of_the_code_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "nn" / "kernels").mkdir(parents=True)
    code = tmp_path / "nn" / "kernels" / "some.py"
    code.write_text("a = 1\n")
    digests = [sources_digest.__wrapped__(tmp_path)]
    code.write_text("a = 2\n")
    digests.append(sources_digest.__wrapped__(tmp_path))
    code.rename(code.with_name("other.py"))
    digests.append(sources_digest.__wrapped__(tmp_path))
    assert len(set(digests)) == 3
    assert sources_digest() == sources_digest.__wrapped__()


class Measured(GraphCapture):
    """Counts the captures, and measures a time for each of them."""

    captures = 0

    def capture(self, body: Body) -> Body:
        type(self).captures += 1
        return super().capture(body)

    def fresh(self) -> GraphCapture:
        return Measured(CPU)


def chosen(path: Path, sets: tuple[Kernels, ...]) -> tuple[StepGraph[int], int]:
    """Capture a step of one row. Returns the step, and how many captures there were."""
    Measured.captures = 0
    capture = Measured(CPU)
    capture.kernel_times = KernelTimes(path, FACTS)
    steps = StepGraph[int](1, [1], integers=1, floats=1, kernels=sets, device=CPU)
    steps.capture(capture, lambda *_: None, 1)
    return steps, Measured.captures


def test_second_start_measures_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "times.json"
    first, captures = chosen(path, SETS)
    assert captures == 3  # one for each set, and the step itself
    caplog.set_level(logging.INFO)
    second, captures = chosen(path, SETS)
    assert captures == 1
    assert "measured at an earlier start" in caplog.text
    assert second.kernels[1].name == first.kernels[1].name
    assert second.facts == first.facts
    assert "1 row: torch" in str(dict(second.facts)["kernels_timed"])
    # another set, and a set in which torch replaces a kernel, have not been measured
    assert chosen(path, (TORCH, dataclasses.replace(SETS[1], from_torch=("gate",))))[1] == 3


def test_stored_times_decide(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    for seconds, best in (({"torch": 2.0, "triton": 1.0}, "triton"), ({"torch": 1.0, "triton": 2.0}, "torch")):
        KernelTimes(path, FACTS).add(1, seconds)
        assert chosen(path, SETS)[0].kernels[1].name == best
