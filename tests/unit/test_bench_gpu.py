"""`python3 -m bench.gpu`: parts that fail or take too long, the size of the output, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def test_output_of_a_part_that_takes_too_long_is_kept() -> None:
    found = gpu.run(gpu.Part("server", ("http.server", "0", "--bind", "127.0.0.1"), 60.0), 5.0, "cpu")
    assert found["failed"] == "took longer than 5 s"
    assert "Serving HTTP" in found["output"][0]
    assert "Serving HTTP" in gpu.told("server", found)


def test_failed_part_is_reported_with_its_last_lines() -> None:
    found = gpu.run(gpu.Part("missing", ("bench.missing",), 60.0), 60.0, "cpu")
    assert found["failed"] == "status 1"
    assert "No module named bench.missing" in gpu.told("missing", found)


def test_last_line_of_a_part_is_its_result() -> None:
    found = gpu.run(gpu.Part("platform", ("platform",), 60.0), 60.0, "cpu")
    assert isinstance(found["said"], str)


def test_json_and_table_fit_into_the_output_limit() -> None:
    result = {
        "bench": "gpu",
        "parts": {f"part {n}": {"said": {"values": "x" * 200 * n}, "took_s": 1.5} for n in range(9)},
    }
    text = gpu.shortened(result, 3000)
    assert len(text) <= 3000
    parts = json.loads(text)["parts"]
    assert parts["part 8"] == {"took_s": 1.5, "cut": True}  # the details of the largest part are removed first
    assert parts["part 1"]["said"] == {"values": "x" * 200}
    assert len(result["parts"]["part 8"]["said"]["values"]) == 1600
    assert json.loads(gpu.shortened(result, 10**6)) == result


@pytest.mark.slow
@pytest.mark.timeout(590)
def test_rehearsal_runs_all_kinds_of_parts_on_the_cpu(tmp_path: Path) -> None:
    only = "csm 1,dia 8,csm first,memory"
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--only", only, "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout) <= gpu.TABLE_CHARS
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert set(parts) == set(only.split(","))
    assert not [name for name, part in parts.items() if "failed" in part]
    assert parts["csm 1"]["said"]["ours"]["frame_s"]["median"] > 0
    assert set(json.loads(done.stdout.splitlines()[-1])["parts"]) == set(parts)
