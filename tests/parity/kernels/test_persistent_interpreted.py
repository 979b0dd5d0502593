"""Compares the Triton kernel for all steps of a depth decoder with torch, in Triton's interpreter: `make kernels`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed here: make kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is not asked to interpret: make kernels", allow_module_level=True)

from app.nn.kernels import depth, persistent_kernel, persistent_launch, torch_kernels
from app.nn.kernels.checks import depth_trial, fault_of_operation
from app.nn.kernels.depth import MAX_DEPTH_ROWS, DepthWeights, DrawParameters, LayerWeights
from app.nn.kernels.sets import fused_kernels
from app.nn.rope import Rope, rotary
from bench.kernels import mend_interpreter
from tests.support.program_threads import run_programs_in_threads

mend_interpreter()

# the interpreter takes milliseconds for each phase of each program
pytestmark = [pytest.mark.unit, pytest.mark.timeout(500)]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")
# tolerances for the keys and values in the cache, and for logits of about 10
ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
LOGITS = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.8}


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each program compute more outputs at once, because the interpreter takes milliseconds for each tile."""
    monkeypatch.setattr(persistent_launch, "_COLUMNS", 32)
    monkeypatch.setattr(persistent_launch, "_FEW", 32)


@dataclass(frozen=True)
class Shape:
    layers: int = 2
    codebooks: int = 4
    width: int = 48
    groups: int = 2
    share: int = 3
    size: int = 16
    ffn: int = 72
    codes: int = 37
    vocab: int = 40
    silu: bool = True


SHAPES = {
    "odd": Shape(),
    "one head": Shape(layers=1, codebooks=3, width=33, groups=1, share=1, ffn=300, codes=19, vocab=19, silu=False),
    "wide": Shape(layers=1, codebooks=3, width=128, groups=1, share=4, size=32, ffn=5000, codes=64, vocab=67),
}


@dataclass(frozen=True)
class Frame:
    """The arguments of one call."""

    weights: DepthWeights
    cache: Tensor
    x: Tensor
    first: Tensor
    draws: DrawParameters

    def run(self, kernel: depth.DepthFrame) -> tuple[Tensor, Tensor, Tensor]:
        """Return the codes, the logits of the last codebook, and the KV cache."""
        cache = self.cache.clone()
        codes, logits = kernel(self.weights, cache[0], cache[1], self.x.clone(), self.first, self.draws)
        return codes, logits, cache

    def only(self, rows: slice) -> Frame:
        draws = (self.draws.temperature, self.draws.top_k, self.draws.top_p, self.draws.seeds, self.draws.frames)
        parts = DrawParameters(*(each[rows].contiguous() for each in draws))
        return Frame(self.weights, self.cache[:, :, rows].clone(), self.x[rows].clone(), self.first[rows], parts)


def frame_of(shape: Shape, rows: int, dtype: torch.dtype, seed: int = 0) -> Frame:
    """Create a depth decoder with random weights, whose logits are about 10, and a frame with random parameters.

    Row i draws greedily (i % 4 = 0), with top-k (1), with top-p (2), or with both (3).
    """
    random = torch.Generator().manual_seed(seed)

    def of(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=random) * scale).to(dtype)

    s = shape
    layers = [
        LayerWeights(
            of(s.width),
            of(s.groups * (s.share + 2) * s.size, s.width, scale=s.width**-0.5),
            of(s.width, s.groups * s.share * s.size, scale=(s.groups * s.share * s.size) ** -0.5),
            of(s.width),
            of(2 * s.ffn, s.width, scale=s.width**-0.5),
            of(s.width, s.ffn, scale=s.ffn**-0.5),
        )
        for _ in range(s.layers)
    ]
    weights = DepthWeights(
        layers,
        of(s.width),
        [of(s.codes, s.width, scale=10 * s.width**-0.5) for _ in range(s.codebooks - 1)],
        of((s.codebooks - 1) * s.vocab, s.width),
        *rotary(Rope(500_000.0).frequencies(s.size), torch.arange(s.codebooks + 1)),
        groups=s.groups,
        scale=s.size**-0.5,
        eps=1e-5,
        activation="silu" if s.silu else "gelu",
    )
    # the cache has more rows and positions than the frame, and NaN everywhere
    cache = torch.full((2, s.layers, rows + 1, s.groups, s.codebooks + 3, s.size), math.nan, dtype=dtype)
    which = torch.arange(rows) % 4
    draws = DrawParameters(
        torch.where(which == 0, 0.0, 0.9),
        torch.where(which % 2 == 1, 5, 0),
        torch.where(which >= 2, 0.8, 1.0),
        torch.arange(rows) + 1000 * seed,
        torch.arange(rows) * 7,
    )
    first = torch.randint(0, s.codes, (rows,), generator=random)
    return Frame(weights, cache[:, :, :rows], of(rows, s.width), first, draws)


def run_in_threads(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    run_programs_in_threads(monkeypatch, persistent_kernel.depth_frame, range(programs), programs)


def check_against_torch(
    frame: Frame, codes: Tensor, logits: Tensor, cache: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that torch, which reads the same codes, gives the same cache and logits and can draw these codes.

    A code can be drawn if it is drawn with a logit that is larger by no more than rounding errors can be.
    """
    dtype = frame.x.dtype

    def forced(logits: Tensor, *parameters: Tensor | int) -> Tensor:
        codebook = parameters[5]
        assert isinstance(codebook, int)
        drawn = codes[:, codebook]
        larger = logits.scatter_add(1, drawn[:, None], torch.full((len(drawn), 1), LOGITS[dtype]))
        assert torch.equal(torch_kernels.sample(larger, *parameters), drawn)  # type: ignore[arg-type]
        return drawn

    with monkeypatch.context() as patch:
        patch.setattr(depth, "sample", forced)
        expected, expected_logits, expected_cache = frame.run(depth.depth_frame)
    assert torch.equal(expected, codes)
    torch.testing.assert_close(logits, expected_logits, rtol=LOGITS[dtype] / 10, atol=LOGITS[dtype])
    known = expected_cache.isfinite()
    assert torch.equal(known, cache.isfinite())
    torch.testing.assert_close(cache[known], expected_cache[known], rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, (16, 8)), (3, (64, 64))])
def test_frame_equals_torch(
    shape: str, rows: int, columns: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shape != "wide":  # this shape would have too many small tiles
        monkeypatch.setattr(persistent_launch, "_COLUMNS", columns[0])
        monkeypatch.setattr(persistent_launch, "_FEW", columns[1])
    else:
        monkeypatch.setattr(persistent_launch, "_COLUMNS", 1024)
    frame = frame_of(SHAPES[shape], rows, dtype)
    codes, logits, cache = frame.run(persistent_launch.depth_frame)
    check_against_torch(frame, codes, logits, cache, monkeypatch)
    if dtype == torch.float32:
        assert torch.equal(codes, frame.run(depth.depth_frame)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "programs"), [(2, 3), (8, 4), (MAX_DEPTH_ROWS, 2)])
def test_frame_of_programs_that_wait_for_each_other_equals_torch(
    rows: int, programs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_of(SHAPES["odd"], rows, dtype, seed=rows)
    run_in_threads(monkeypatch, programs)
    codes, logits, cache = frame.run(persistent_launch.depth_frame)
    check_against_torch(frame, codes, logits, cache, monkeypatch)
    if dtype == torch.float32:
        assert torch.equal(codes, frame.run(depth.depth_frame)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_number_of_programs_does_not_change_any_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7 programs, some programs have no outputs in some phases."""
    frame = frame_of(SHAPES["odd"], 3, dtype)
    codes, logits, cache = frame.run(persistent_launch.depth_frame)
    for programs in (2, 3, 7):
        with monkeypatch.context() as patch:
            run_in_threads(patch, programs)
            for _ in range(2):
                found, found_logits, found_cache = frame.run(persistent_launch.depth_frame)
                assert torch.equal(found, codes)
                assert torch.equal(found_logits, logits)
                assert torch.equal(found_cache.nan_to_num(9), cache.nan_to_num(9))


def test_row_has_the_same_bits_alone_and_beside_others() -> None:
    frame = frame_of(SHAPES["odd"], MAX_DEPTH_ROWS, torch.bfloat16)
    codes, _, cache = frame.run(persistent_launch.depth_frame)
    for rows in (slice(0, 1), slice(5, 6), slice(6, 14)):
        found, _, found_cache = frame.only(rows).run(persistent_launch.depth_frame)
        assert torch.equal(found, codes[rows])
        assert torch.equal(found_cache.nan_to_num(9), cache[:, :, rows].nan_to_num(9))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, because the memory for results is not initialised
def test_programs_that_do_not_wait_give_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this test, the tests above could pass because the threads happen to run in the right order."""
    frame = frame_of(SHAPES["odd"], 3, torch.bfloat16)
    _, _, cache = frame.run(persistent_launch.depth_frame)
    run_in_threads(monkeypatch, 3)
    monkeypatch.setattr(persistent_kernel, "_wait", lambda *_: None)
    _, _, found = frame.run(persistent_launch.depth_frame)
    assert not torch.equal(found.nan_to_num(9), cache.nan_to_num(9))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, because the memory for results is not initialised
def test_launch_ends_and_reports_invalid_codes_if_a_program_never_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent_launch, "_POLLS", 20)
    run_programs_in_threads(monkeypatch, persistent_kernel.depth_frame, [0, 2], 3)
    frame = frame_of(SHAPES["odd"], 5, torch.bfloat16)
    codes, logits, _ = frame.run(persistent_launch.depth_frame)
    assert not logits.isfinite().all(dim=1).any()
    mine = [0, 2, 3]  # the rows of the programs that run
    assert bool(((codes[mine] >= 0) & (codes[mine] < SHAPES["odd"].codes)).all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, for the row with NaN
def test_only_rows_that_are_not_finite_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(SHAPES["odd"], 4, torch.bfloat16)
    expected, *_ = frame.run(persistent_launch.depth_frame)
    frame.x[1, 3], frame.x[2, 0] = math.nan, math.inf
    run_in_threads(monkeypatch, 2)
    codes, logits, _ = frame.run(persistent_launch.depth_frame)
    for each in (logits, frame.run(depth.depth_frame)[1]):
        assert each.isfinite().all(dim=1).tolist() == [True, False, False, True]
    assert torch.equal(codes[[0, 3]], expected[[0, 3]])
    assert bool(((codes >= 0) & (codes < SHAPES["odd"].codes)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_passes_the_start_check(dtype: torch.dtype) -> None:
    assert not fault_of_operation("depth_frame", depth_trial(CPU, dtype), fused_kernels(), dtype)


@pytest.mark.parametrize("fault", ["rows", "dtype", "strides", "size"])
def test_unsupported_frames_are_rejected(fault: str) -> None:
    frame = frame_of(SHAPES["odd"], MAX_DEPTH_ROWS + (fault == "rows"), torch.float32)
    x, cache = frame.x, frame.cache
    if fault == "dtype":
        x = x.bfloat16()
    if fault == "strides":
        x = torch.cat((x, x), dim=1)[:, ::2]
    if fault == "size":
        cache = cache[..., :15]
    with pytest.raises(ValueError, match="no Triton kernel"):
        persistent_launch.depth_frame(frame.weights, *cache, x, frame.first, frame.draws)
