"""The native kernels for CPUs: their values, equal bits in all cases, and what happens where they can't be used."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from app.engines.shared.quantization import choose_quantization
from app.errors import EngineUnavailable
from app.nn.attention import PrefillAttention
from app.nn.kv_cache import KVCache
from app.nn.linear import Int8Linear, Linear, replace_linears
from app.nn.low_rank import GATHERED_TOKENS, LowRankAdapters, Part, Place
from app.nn.native import library as native
from app.nn.native.library import InstructionSet, Library, NativeUnavailable, choose, compile_library, instruction_sets
from app.nn.native.modules import NativeAttention, NativeLinear, native_gate
from app.nn.rope import Rope
from app.nn.transformer import Stack, StackConfig
from bench.runners import fill

CPU = torch.device("cpu")
CONFIG = StackConfig(
    layers=3, width=64, heads=4, kv_heads=2, head_dim=32, ffn=96, eps=1e-5, rope=Rope(10_000.0)
)  # fmt: skip
HERE = [each for each in instruction_sets() if each.features <= native.cpu_features()]

pytestmark = pytest.mark.skipif(not HERE, reason="this CPU has no native kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels of this CPU."""
    path = tmp_path_factory.mktemp("kernels")
    native.load(path, 1)
    return path


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return native.load(folder, 1)


def plain(inputs: int, outputs: int, *, bias: bool = False, seed: int = 0) -> Linear:
    linear = Linear(inputs, outputs, bias=bias, device=CPU, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    linear.weight.data = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    if linear.bias is not None:
        linear.bias.data = torch.randn(outputs, generator=generator)
    return linear


def twin(linear: Linear, x: Tensor, bits: int) -> Tensor:
    """Compute what a NativeLinear computes, in float64 with PyTorch: the same rounded weights and activations."""
    weight = linear.weight.data.view(len(linear.weight), -1, 32)
    if bits == 8:
        scale = (weight.abs().amax(-1, keepdim=True) / 127).half().float()
        q = torch.round(weight / scale).clamp(-127, 127)
    else:
        place = weight.abs().argmax(-1, keepdim=True)
        scale = (weight.gather(-1, place) / -8).half().float()
        q = torch.round(weight / scale).clamp(-8, 7)
    blocks = x.view(len(x), -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    activations = torch.round(blocks * (127 / largest)) * (largest / 127).double()
    y = functional.linear(activations.flatten(1), (q * scale.double()).flatten(1))
    return y if linear.bias is None else y + linear.bias.double()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("inputs", "outputs", "tokens"), [(32, 16, 1), (64, 67, 3), (96, 5, 9), (512, 130, 17)])
def test_linear_equals_its_twin_in_torch(library: Library, bits: int, inputs: int, outputs: int, tokens: int) -> None:
    linear = plain(inputs, outputs, bias=True)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1))
    x[:, 3] *= 100  # a channel of large activations
    y = NativeLinear(library, linear, bits=bits)(x)
    torch.testing.assert_close(y.double(), twin(linear, x, bits), rtol=2e-5, atol=2e-5 * float(x.abs().max()))


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.015), (4, 0.16)])
def test_large_channels_do_not_make_the_others_inexact(library: Library, bits: int, limit: float) -> None:
    linear = plain(1024, 64)
    x = torch.randn(8, 1024, generator=torch.Generator().manual_seed(1))
    x[:, [5, 100, 900]] *= 100
    exact = linear(x)

    def error(y: Tensor) -> float:
        return float((y - exact).norm() / exact.norm())

    found = error(NativeLinear(library, linear, bits=bits)(x))
    assert found < limit
    if bits == 8:
        assert found < error(Int8Linear(linear)(x)) / 3


def test_linear_with_a_norm_normalises_its_input(library: Library) -> None:
    linear, norm = plain(128, 48), torch.rand(128) + 0.5
    x = 30 * torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    fused = NativeLinear(library, linear, norm=norm, eps=1e-5)(x)
    apart = NativeLinear(library, linear)(functional.rms_norm(x, (128,), norm, 1e-5))
    torch.testing.assert_close(fused, apart, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(fused, linear(functional.rms_norm(x, (128,), norm, 1e-5)), rtol=0.05, atol=0.05)


def test_gate_is_swiglu(library: Library) -> None:
    gate_up = 10 * torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    gate_up[0, 0], gate_up[0, 1] = 200.0, -200.0
    first, up = gate_up.chunk(2, dim=1)
    torch.testing.assert_close(native_gate(library, gate_up), functional.silu(first) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_token_that_is_not_finite_gives_nan_and_spoils_no_other(library: Library, value: float) -> None:
    layer = NativeLinear(library, plain(64, 32))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    x[1, 40] = value
    y = layer(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


def test_token_of_zeros_gives_the_bias(library: Library) -> None:
    linear = plain(64, 32, bias=True)
    assert linear.bias is not None
    assert torch.equal(NativeLinear(library, linear)(torch.zeros(1, 64))[0], linear.bias.data)


def quantized_stack(library: Library, bits: int = 8) -> Stack:
    stack = Stack(CONFIG, max_positions=64, device=CPU, dtype=torch.float32)
    fill(stack)
    for block in stack.blocks:
        block.quantize(lambda linear, norm, eps: NativeLinear(library, linear, bits=bits, norm=norm, eps=eps))  # type: ignore[operator]
    stack.use_native(library)
    return stack


def kv_cache(library: Library | None, rows: int = 4) -> KVCache:
    return KVCache(CONFIG, rows=rows, positions=64, device=CPU, dtype=torch.float32, library=library)


def speak(stack: Stack, library: Library, *, one_by_one: bool = False, layers: bool = False) -> Tensor:
    """Read a prompt of each of three rows, and then decode five tokens of them, together or one by one."""
    cache, outputs = kv_cache(library), []
    run: Callable[..., Tensor] = by_layers(stack) if layers else stack
    x = torch.randn(3, 40, CONFIG.width, generator=torch.Generator().manual_seed(3))
    lengths = [5, 17, 33]
    for row, length in enumerate(lengths):
        cuts = range(length) if one_by_one else [0]
        for start in cuts:
            count = 1 if one_by_one else length
            part = slice(start, start + count)
            run(x[row, part], part, cache.prefill_attention(row, start, count))
    for step in range(5):
        at = [length + step for length in lengths]
        token = x[range(3), at]
        if one_by_one:
            outputs += [
                run(token[row : row + 1], torch.tensor(at[row : row + 1]), cache.decode_attention([row], [at[row]]))
                for row in range(3)
            ]
        else:
            outputs.append(run(token, torch.tensor(at), cache.decode_attention(range(3), at)))
    return torch.cat(outputs)


def by_layers(stack: Stack) -> Callable[[Tensor, Tensor, NativeAttention], Tensor]:
    def run(x: Tensor, positions: Tensor, attend: NativeAttention) -> Tensor:
        for y in stack.layer_outputs(x, positions, attend):
            x = y
        return stack.final_norm(x)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_bits_do_not_depend_on_other_tokens_threads_or_instructions(folder: Path, library: Library, bits: int) -> None:
    expected = speak(quantized_stack(library, bits), library)
    assert expected.isfinite().all()
    assert torch.equal(speak(quantized_stack(library, bits), library, one_by_one=True), expected)
    several = native.load(folder, 3)
    assert torch.equal(speak(quantized_stack(several, bits), several), expected)
    for each in HERE[1:]:
        other = Library(compile_library(each, folder), each.name, 1)
        assert torch.equal(speak(quantized_stack(other, bits), other), expected), each.name


def test_stack_in_one_call_equals_its_layers(library: Library) -> None:
    stack = quantized_stack(library)
    torch.testing.assert_close(speak(stack, library, layers=True), speak(stack, library), rtol=1e-5, atol=1e-6)


def test_stack_approximates_the_plain_stack(library: Library) -> None:
    """The plain stack computes attention with PyTorch, so this also checks RoPE, masks and the cache."""
    stack = Stack(CONFIG, max_positions=64, device=CPU, dtype=torch.float32)
    fill(stack)
    x = torch.randn(20, CONFIG.width, generator=torch.Generator().manual_seed(3))
    exact = stack(x, slice(0, 20), kv_cache(None).prefill_attention(1, 0, 20))
    found = quantized_stack(library)(x, slice(0, 20), kv_cache(library).prefill_attention(1, 0, 20))
    assert float((found - exact).norm() / exact.norm()) < 0.03


def test_attention_of_torch_and_the_kernels_write_the_same_cache(library: Library) -> None:
    ours, theirs = kv_cache(library), kv_cache(None)
    q, k, v = torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(3)).split((4, 2, 2), dim=1)
    angles = torch.ones(6, 1, 32), torch.zeros(6, 1, 32)
    native_attend, attend = ours.prefill_attention(2, 0, 6), theirs.prefill_attention(2, 0, 6)
    assert isinstance(native_attend, NativeAttention)
    expected: PrefillAttention = attend  # type: ignore[assignment]
    found = native_attend(1, torch.cat((q, k, v), dim=1), *angles)
    torch.testing.assert_close(found, expected(1, q, k, v), rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.k[1, 2, :, :6], theirs.k[1, 2, :, :6])
    assert torch.equal(ours.v[1, 2, :, :6], theirs.v[1, 2, :, :6])


def adapted(library: Library, norm: Tensor | None) -> tuple[LowRankAdapters, torch.nn.Module, Tensor]:
    """Return adapters with one adapter in slot 1, the adapted layer, and the matrix that the adapter adds."""
    parent = torch.nn.Module()
    parent.linear = NativeLinear(library, plain(64, 48), norm=norm, eps=1e-5)
    place = Place(parent, "linear", (48,), CPU, norm, 1e-5)
    adapters = LowRankAdapters({"linear": place}, torch.bfloat16)
    random = torch.Generator().manual_seed(5)
    down, up = torch.randn(4, 64, generator=random), torch.randn(4, 48, generator=random)
    adapters.set_slot(1, {"linear": [Part(0, down, up)]})
    return adapters, parent.linear, (down.T @ up).T


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 5])  # 5 tokens of a row are a prompt, which PyTorch computes
def test_adapters_add_their_products_in_each_order_of_calls(library: Library, normed: bool, tokens: int) -> None:
    """`add` alone is called for products that the model has computed before, and then `forward` for the same rows."""
    norm = torch.rand(64, generator=torch.Generator().manual_seed(6)) + 0.5 if normed else None
    adapters, layer, matrix = adapted(library, norm)
    x = torch.randn(2 * tokens, 64, generator=torch.Generator().manual_seed(7))
    seen = x if norm is None else functional.rms_norm(x, (64,), norm, 1e-5)
    adapters.select((1, 0))
    if not normed:
        found = layer.add(x, torch.zeros(2 * tokens, 48))  # type: ignore[operator]
        torch.testing.assert_close(found[:tokens], (seen @ matrix.T)[:tokens], rtol=0.05, atol=0.3)
    base = layer.inner(x)  # type: ignore[operator]
    # A prompt is rounded to the dtype of the matrices. In a step, a row without an adapter keeps its bits.
    error = {"rtol": 0.01, "atol": 0.01} if tokens > GATHERED_TOKENS else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(layer(x)[tokens:], base[tokens:], **error)
    torch.testing.assert_close(layer(x)[:tokens] - base[:tokens], (seen @ matrix.T)[:tokens], rtol=0.05, atol=0.3)


# ---- where the kernels can't be used


def test_fastest_instruction_set_of_the_cpu_is_chosen() -> None:
    x86 = instruction_sets("x86_64")
    assert choose(x86, frozenset().union(*(each.features for each in x86))).name == "avx512vnni"
    assert choose(x86, frozenset({"avx2", "fma", "f16c", "avx_vnni"})).name == "avxvnni"
    assert choose(x86, frozenset({"avx2", "fma", "f16c", "avx512f"})).name == "avx2"
    assert choose(instruction_sets("aarch64"), frozenset({"asimddp"})).name == "dotprod"
    with pytest.raises(NativeUnavailable, match="the CPU has no avx2 instructions"):
        choose(x86, frozenset({"sse2"}))
    with pytest.raises(NativeUnavailable, match="there are no native kernels for"):
        choose(instruction_sets("riscv64"), frozenset())


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/bin/false", "the compiler /bin/false failed"), ("/no/such/compiler", "could not be compiled: .*No such file")],
)
def test_compiler_that_fails_gives_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NativeUnavailable, match=reason):
        compile_library(HERE[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_error_of_the_compiler_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match="error"):
        compile_library(InstructionSet("none", ("-mno-such-option",), frozenset()), tmp_path)


def test_damaged_library_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def copy(wanted: InstructionSet, target: Path) -> Path:  # a compilation takes seconds
        return Path(shutil.copy(folder / wanted.file_name, target))

    monkeypatch.setattr(native, "compile_library", copy)
    (tmp_path / HERE[0].file_name).write_bytes(b"a library of another machine")
    assert native.load(tmp_path, 1).name == HERE[0].name
    assert "compiled again" in caplog.text


def test_int8_uses_pytorch_without_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with caplog.at_level(logging.WARNING):
        found = choose_quantization("int8", [CPU], [CONFIG], tmp_path)
    assert found is not None
    model = torch.nn.Sequential(plain(64, 32))
    replace_linears(model, found.quantize)
    assert isinstance(model[0], Int8Linear)
    assert dict(found.facts)["kernels"] == "torch"
    assert "the compiler /bin/false failed" in str(dict(found.facts)["kernels_reason"])
    assert len(caplog.records) == 1
    with pytest.raises(EngineUnavailable, match="int4 weights need the native kernels: the compiler /bin/false failed"):
        choose_quantization("int4", [CPU], [CONFIG], tmp_path)


def test_data_folder_that_cannot_be_written_uses_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/bin/false")  # the folder fails before the compiler is called
    (tmp_path / "file").touch()
    found = choose_quantization("int8", [CPU], [CONFIG], tmp_path / "file" / "kernels")
    assert found is not None
    assert found.library is None
    assert "Not a directory" in str(dict(found.facts)["kernels_reason"])


def test_unknown_cpu_uses_pytorch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The folder has kernels that another CPU compiled."""
    monkeypatch.setattr(native, "cpu_features", frozenset)
    found = choose_quantization("int8", [CPU], [CONFIG], folder)
    assert found is not None
    assert found.library is None
    assert "the CPU has no" in str(dict(found.facts)["kernels_reason"])


def test_unsupported_shapes_use_pytorch(tmp_path: Path) -> None:
    odd = StackConfig(layers=1, width=64, heads=8, kv_heads=2, head_dim=8, ffn=96, eps=1e-5, rope=Rope(10_000.0))
    found = choose_quantization("int8", [CPU], [odd], tmp_path)
    assert found is not None
    assert found.library is None
    assert "shape" in str(dict(found.facts)["kernels_reason"])


def test_kernels_are_reported_and_can_be_turned_off(folder: Path) -> None:
    found = choose_quantization("int8", [CPU], [CONFIG], folder)
    assert found is not None
    assert dict(found.facts) == {"kernels": f"native {HERE[0].name}"}
    off = choose_quantization("int8", [CPU], [CONFIG], folder, native=False)
    assert off is not None
    assert "TTS_KERNELS=torch" in str(dict(off.facts)["kernels_reason"])
    assert found.name != off.name  # other codes need another fingerprint
    assert choose_quantization("none", [CPU], [CONFIG], folder) is None
    with pytest.raises(EngineUnavailable, match="for the CPU only"):
        choose_quantization("int4", [torch.device("meta")], [CONFIG], folder)
