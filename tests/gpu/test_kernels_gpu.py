"""The kernels on a CUDA device: Triton's against torch's, and both in CUDA graphs: `python -m pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.nn.kernels.checks import differs
from app.nn.kernels.sets import TORCH, Kernels, fused_kernels
from bench.kernels import Case, cases, check

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda", 0)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# The inputs of `depth_frame` include addresses, so they can't be replaced: test_csm_gpu.py replays it.
FEW = [case for case in cases(3, torch.bfloat16) if case.kernel != "depth_frame"]


@pytest.fixture(autouse=True, scope="module")
def _exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def triton() -> Kernels:
    pytest.importorskip("triton")
    return fused_kernels()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_kernels_pass_the_start_check(dtype: torch.dtype, triton: Kernels) -> None:
    assert not differs(triton, CUDA, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_triton_gives_the_results_of_torch(dtype: torch.dtype, rows: int, triton: Kernels) -> None:
    for case in cases(rows, dtype):
        check(case, triton, CUDA)


@pytest.mark.parametrize("case", FEW, ids=[case.name for case in FEW])
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_cuda_graph_replays_with_new_inputs(case: Case, name: str, triton: Kernels) -> None:
    kernels = TORCH if name == "torch" else triton
    inputs = case.make(torch.Generator(CUDA).manual_seed(1), CUDA)
    side = torch.cuda.Stream(CUDA)
    side.wait_stream(torch.cuda.current_stream(CUDA))
    with torch.cuda.stream(side):
        case.run(kernels, inputs)
    torch.cuda.current_stream(CUDA).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.run(kernels, inputs)
    for seed in (2, 3):
        others = case.make(torch.Generator(CUDA).manual_seed(seed), CUDA)
        for kept, other in zip(inputs, others, strict=True):
            kept.copy_(other)
        graph.replay()
        for result, expected in zip(captured, case.run(kernels, others), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0 if result.dtype == torch.int64 else 0.02)
