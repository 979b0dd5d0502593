"""Triton's kernels, compiled for GPUs that are not here: what their compiler refuses the interpreter lets pass.

`make kernels`. The tests use the real launches, with tensors of the models' shapes, and stop when the program is
compiled.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here: make kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton is asked to interpret, not to compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from app.nn.kernels import persistent_launch, triton_launch
from app.nn.kernels.depth import DepthWeights, DrawParameters, LayerWeights
from app.nn.kernels.sets import EARLY_OPERATIONS, LINEAR_OPERATIONS, early_kernels, fused_kernels
from app.nn.linear import Fp8Weight
from bench.kernels import ADD_LINEARS, NORM_LINEARS, Case, cases

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# Compute capability -> bytes of shared memory that one Triton program may use.
SHARED = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
# Bytes of registers that attention may spill. On compute capability 7.5, attention spills 176 to 1864 bytes. At its
# start the server measures the kernels, and uses torch's kernels if these are faster.
SPILLS = {75: 2048}
# Bytes of registers that a thread of `depth_frame` may spill. It spills 16 to 272 bytes, and not in the loops that read
# most of the weights.
DEPTH_SPILLS = 288
# Before compute capability 8.0, there are no instructions for bfloat16: the server chooses float16 there.
BUILDS = [
    (arch, dtype) for arch in SHARED for dtype in (torch.float16 if arch < 80 else torch.bfloat16, torch.float32)
] + [(90, torch.float16)]


@dataclass
class Machine:
    """A fake Triton driver: names a GPU and keeps the programs compiled for it."""

    arch: int
    programs: list[tuple[str, Any]] = field(default_factory=list)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # the key of the compile cache, so that programs for different GPUs are stored separately

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Machine]]:
    run = JITFunction.run
    before = driver._active

    def begin(arch: int) -> Machine:
        fake_driver = Machine(arch)
        driver.set_active(fake_driver)

        def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            program = run(self, *args, grid=grid, warmup=True, **options)
            fake_driver.programs.append((self.fn.__name__, program))
            return program

        monkeypatch.setattr(JITFunction, "run", compiled)
        return fake_driver

    yield begin
    driver._active = before


def resources(program: Any, folder: Path) -> dict[str, int]:
    """Return the resources of a compiled program: REG (registers per thread), LOCAL and STACK (bytes of spills)."""
    binary = folder / "program.cubin"
    binary.write_bytes(program.asm["cubin"])
    resource_dump = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", binary], check=True, capture_output=True
    )
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", resource_dump.stdout.decode())}


def launch(case: Case) -> None:
    case.run(fused_kernels(), case.make(torch.Generator().manual_seed(0), CPU))


@pytest.mark.parametrize(("arch", "dtype"), BUILDS, ids=str)
def test_all_kernels_compile_for_every_supported_gpu(
    arch: int, dtype: torch.dtype, machine: Callable[[int], Machine], tmp_path: Path
) -> None:
    here = machine(arch)
    linear = arch >= 80 and dtype != torch.float32  # otherwise torch computes linear layers, see `_with_linear`
    for case in cases(1, dtype):
        if case.kernel == "depth_frame":
            continue  # see test_all_steps_of_the_depth_decoder_compile_as_one_kernel
        # of the linear layers, those that need the most shared memory and registers
        if case.kernel not in LINEAR_OPERATIONS or (linear and ("depth gate_up" in case.name or "cross" in case.name)):
            launch(case)
    kinds = {"attend", "combine", "add_norm", "gated", "draw", "guided_draw", "delayed_input", "delayed_output"}
    kinds |= {
        "frame_input",
        "frame_output",
        "frame_embedding",
        "window_attend",
        "add_layer",
        "conv_window",
        "overlap_block",
    }
    kinds |= {"norm_product", "sum_product"} if linear else set()
    assert {name for name, _ in here.programs} == kinds
    for name, program in here.programs:
        assert not program.metadata.launch_pdl
        assert "griddepcontrol" not in program.asm["ptx"]
        assert program.metadata.shared <= SHARED[arch], name
        took = resources(program, tmp_path)
        assert took["REG"] <= 255
        assert took["LOCAL"] == 0
        assert took["STACK"] <= SPILLS.get(arch, 0), f"{name} spills: {took}"


# reads, writes and copies of global memory, except requests of weights into the L2 cache
TOUCHES_MEMORY = re.compile(r"\b(?:ld|st|red|atom)\.(?:\w+\.)*global|\bcp\.async\.(?!bulk\.prefetch)")


@pytest.mark.parametrize("arch", [90, 100, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernels_that_start_early_wait_before_they_read_or_write(
    arch: int, dtype: torch.dtype, machine: Callable[[int], Machine], tmp_path: Path
) -> None:
    here, early = machine(arch), early_kernels(fused_kernels())
    for case in cases(1, dtype):
        if case.kernel in EARLY_OPERATIONS:
            case.run(early, case.make(torch.Generator().manual_seed(0), CPU))
    x, norm = torch.zeros(1, 1024, dtype=dtype), torch.zeros(1024, dtype=dtype)
    both, down = (Fp8Weight.of(torch.zeros(shape, dtype=dtype)) for shape in ((16384, 1024), (1024, 8192)))
    hidden, _ = early.norm_linear(x, torch.zeros(4, 1, 1024), norm, 1e-5, both, "silu")
    early.add_linear(hidden, down, x)
    products = {"norm_product", "sum_product"}
    assert {name for name, _ in here.programs} == {"attend", "combine", "draw", "guided_draw", *products}
    for name, program in here.programs:
        assert program.metadata.launch_pdl
        before, after = program.asm["ptx"].split("griddepcontrol.wait")
        assert "griddepcontrol.launch_dependents" in before
        assert not TOUCHES_MEMORY.search(before), name
        assert TOUCHES_MEMORY.search(after)
        assert ("cp.async.bulk.prefetch.L2" in before) == (name in products)
        took = resources(program, tmp_path)
        assert program.metadata.shared <= SHARED[arch]
        assert took["LOCAL"] == took["STACK"] == 0


def test_half_precision_uses_tensor_cores(machine: Callable[[int], Machine]) -> None:
    here = machine(90)
    for dtype in (torch.bfloat16, torch.float16):
        launch(next(iter(cases(1, dtype))))
    attends = [program for name, program in here.programs if name == "attend"]
    assert len(attends) == 2
    assert all("mma.sync" in program.asm["ptx"] for program in attends)


def test_linear_layers_use_tensor_cores_and_read_ahead(machine: Callable[[int], Machine]) -> None:
    """The weights come from memory while earlier ones are multiplied, and all numbers of tokens share one program."""
    here = machine(90)
    for rows in (1, 2, 8):
        for case in cases(rows, torch.bfloat16):
            if case.kernel in LINEAR_OPERATIONS:
                launch(case)
    assert all("mma.sync" in program.asm["ptx"] for _, program in here.programs)
    assert all("cp.async" in program.asm["ptx"] for _, program in here.programs)
    assert len({id(program) for _, program in here.programs}) == len(NORM_LINEARS) + len(ADD_LINEARS)


@pytest.mark.parametrize("arch", [arch for arch in SHARED if arch >= 89])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_fp8_are_read_as_they_are(
    arch: int, dtype: torch.dtype, machine: Callable[[int], Machine], tmp_path: Path
) -> None:
    """They are converted in registers, so a step reads half of the bytes."""
    here = machine(arch)
    x, norm = torch.zeros(1, 1024, dtype=dtype), torch.zeros(1024, dtype=dtype)
    both, down = (Fp8Weight.of(torch.zeros(shape, dtype=dtype)) for shape in ((16384, 1024), (1024, 8192)))
    hidden, _ = triton_launch.norm_linear(x, torch.zeros(4, 1, 1024), norm, 1e-5, both, "silu")
    triton_launch.add_linear(hidden, down, x)
    assert [name for name, _ in here.programs] == ["norm_product", "sum_product"]
    for name, program in here.programs:
        ptx = program.asm["ptx"]
        assert "mma.sync" in ptx
        assert "cp.async" in ptx
        assert "e4m3x2" in ptx  # the instruction that converts two values
        assert program.metadata.shared <= SHARED[arch], name
        took = resources(program, tmp_path)
        assert (took["LOCAL"], took["STACK"]) == (0, 0), f"{name} spills: {took}"


def test_noise_uses_the_accurate_logarithm(machine: Callable[[int], Machine]) -> None:
    """Near 1, the error of the fast logarithm (2e-7) is as large as the noise that decides the drawn code."""
    here = machine(90)
    for case in cases(1, torch.float32):
        if case.kernel in {"sample", "guided_sample"}:
            launch(case)
    assert len(here.programs) == 3
    for _, program in here.programs:
        assert "lg2.approx" not in program.asm["ptx"]


def test_all_lengths_and_row_counts_share_one_program(machine: Callable[[int], Machine]) -> None:
    """A CUDA graph is captured for each bucket at the start. Separate programs would each need a compilation."""
    here = machine(90)
    for rows in (1, 2, 4, 8):
        for length in (512, 1024, 1536, 2048):
            cache = torch.zeros(2, rows, 8, 2048, 64, dtype=torch.bfloat16)
            token, turn = torch.zeros(rows, 48, 64, dtype=torch.bfloat16), torch.zeros(rows, 1, 64)
            triton_launch.step_attention(token, turn, turn, *cache, torch.zeros(rows).long(), length, 0.125)
    assert len({id(program) for name, program in here.programs if name == "attend"}) == 1


def depth_weights(dtype: torch.dtype) -> DepthWeights:
    """Return weights with the shapes of CSM's depth decoder and undefined values. Each weight is one tensor."""

    def of(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    layer = LayerWeights(of(1024), of(1536, 1024), of(1024, 1024), of(1024), of(16384, 1024), of(1024, 8192))
    heads = [of(2048, 1024)] * 31
    turn = torch.empty(33, 1, 128)
    options: dict[str, Any] = {"groups": 2, "scale": 128**-0.5, "eps": 1e-5, "activation": "silu"}
    return DepthWeights([layer] * 4, of(1024), heads, of(31 * 2051, 1024), turn, turn, **options)


def launch_depth(rows: int, dtype: torch.dtype, weights: DepthWeights) -> None:
    cache, numbers = torch.empty(2, 4, rows, 2, 32, 128, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    draws = DrawParameters(torch.ones(rows), numbers, torch.ones(rows), numbers, numbers)
    persistent_launch.depth_frame(weights, *cache, torch.empty(rows, 1024, dtype=dtype), numbers, draws)


@pytest.mark.parametrize("arch", [arch for arch in SHARED if arch >= 80])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_steps_of_the_depth_decoder_compile_as_one_kernel(
    arch: int, dtype: torch.dtype, machine: Callable[[int], Machine], tmp_path: Path
) -> None:
    """One program fits on a multiprocessor: otherwise a cooperative launch is refused."""
    here = machine(arch)
    weights = depth_weights(dtype)
    for rows in (1, 2, 16):
        launch_depth(rows, dtype, weights)
    assert len({id(program) for _, program in here.programs}) == 1
    [(name, program), *_] = here.programs
    assert name == "depth_frame"
    assert program.metadata.launch_cooperative_grid
    assert program.metadata.shared <= SHARED[arch]
    took = resources(program, tmp_path)
    assert took["REG"] * program.metadata.num_warps * 32 <= 65536
    assert took["LOCAL"] == 0
    assert took["STACK"] <= DEPTH_SPILLS, took


def test_depth_decoder_reads_weights_in_wide_parts_past_the_cache_of_a_multiprocessor(
    machine: Callable[[int], Machine],
) -> None:
    """Values of other programs are read from the L2 cache, and no wait can be moved or left out."""
    here = machine(90)
    launch_depth(1, torch.bfloat16, depth_weights(torch.bfloat16))
    [(_, program)] = here.programs
    ptx = program.asm["ptx"]
    assert "mma.sync" in ptx
    assert ptx.count("ld.global.cg.v4.b32") >= 8
    # All threads of a program wait for each other before its arrival, and the wait is one load for all of them.
    arrivals = re.findall(r"bar\.sync\s+0;[^;]*;[^;]*;[^;]*atom\.global\.gpu\.release\.add", ptx)
    read = r"ld\.global\.gpu\.acquire\.b32[^;]*;"
    waits = re.findall(rf"bar\.sync\s+0;[^;]*;[^;]*{read}[^;]*st\.shared[^;]*;[^;]*bar\.sync", ptx)
    assert len(arrivals) == ptx.count("gpu.release") == 7
    assert len(waits) == ptx.count("gpu.acquire") == 7 + 1  # the last read finds out whether a program gave up
    assert "lg2.approx" not in ptx  # see test_noise_uses_the_accurate_logarithm
