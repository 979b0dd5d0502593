"""The error of DAC in TF32, float16 and bfloat16, compared with float64, and the choice of the format.

TF32 is emulated: the inputs and weights of each product are rounded to a mantissa of 10 bits.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engines.dia.loading import load_runner
from app.nn.dac.checkpoint import load_codec
from app.nn.dac.config import read_dac_config
from app.nn.dac.model import DacDecoder
from app.nn.dac.precision import BOUND_DB, HALF, decoded, fastest_decoder, spectral_error_db
from app.runtime.cuda_graphs import GraphCapture
from tests.support.dia_requests import alone, speech
from tests.support.random_dia import fabricate_dac

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
RATE_HZ = 44_100


def to_tf32(x: Tensor) -> Tensor:
    """Round float32 to a mantissa of 10 bits, to the nearest value, and to an even one if two are equally near."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Tf32Decoder(DacDecoder):
    """A float32 decoder whose products have the precision of TF32."""

    def narrowed(self, x: Tensor) -> Tensor:
        return to_tf32(x)


def in_tf32(decoder: DacDecoder) -> DacDecoder:
    other = Tf32Decoder(decoder.config, rows=1, device=CPU)
    for (name, mine), theirs in zip(decoder.named_parameters(), other.parameters(), strict=True):
        product = name.endswith((".weight", ".second")) and not name.startswith("last")
        theirs.data.copy_(to_tf32(mine.data) if product else mine.data)
    return other


@pytest.fixture(scope="module", params=[96, 384])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DacDecoder:
    """Return a decoder with random weights. param: its width; the published one has 1536."""
    folder = fabricate_dac(tmp_path_factory.mktemp("dac"), changes={"decoder_hidden_size": request.param})
    config = read_dac_config(folder)
    found = DacDecoder(config, rows=1, device=CPU)
    found.load(load_codec(folder, config))
    return found.eval()


def test_error_of_each_format_is_on_the_expected_side_of_the_bound(decoder: DacDecoder) -> None:
    """TF32 and float16 are below the bound, and bfloat16 is above it. docs/benchmarks.md has the full-size figures."""
    codes = torch.randint(1024, (1, 9, 24), generator=torch.Generator().manual_seed(5))
    reference = decoded(decoder.converted(torch.float64), codes)
    assert reference.dtype == torch.float64
    error = {
        "float32": spectral_error_db(decoded(decoder, codes), reference),
        "tf32": spectral_error_db(decoded(in_tf32(decoder), codes), reference),
        "float16": spectral_error_db(decoded(decoder.converted(torch.float16), codes), reference),
        "bfloat16": spectral_error_db(decoded(decoder.converted(torch.bfloat16), codes), reference),
    }
    assert error["float32"] < -100
    assert error["tf32"] < BOUND_DB
    assert error["float16"] < BOUND_DB
    assert BOUND_DB < error["bfloat16"] < -25


def test_first_format_with_an_error_below_the_bound_is_used(decoder: DacDecoder) -> None:
    chosen, errors = fastest_decoder(decoder)
    assert chosen.dtype == torch.float16
    assert set(errors) == {torch.float16}
    assert errors[torch.float16] < BOUND_DB
    same, errors = fastest_decoder(decoder, (torch.bfloat16,))
    assert same is decoder
    assert errors[torch.bfloat16] > BOUND_DB


def test_decoder_that_overflows_stays_in_float32(decoder: DacDecoder) -> None:
    large = decoder.converted(torch.float32)
    large.first.weight.data.mul_(1e8)
    chosen, errors = fastest_decoder(large)
    assert chosen is large
    assert list(errors) == list(HALF)
    assert errors[torch.float16] == math.inf


@pytest.mark.parametrize("chunks", [[24], [8, 8, 8], [1] * 24, [3, 13, 8]])
def test_float16_decoder_streams_like_float32(decoder: DacDecoder, chunks: list[int]) -> None:
    """The states between chunks add no error."""
    codes = torch.randint(1024, (1, 9, 24), generator=torch.Generator().manual_seed(6))
    narrow = decoder.converted(torch.float16)
    parts = [narrow.decode([0], part)[0] for part in torch.split(codes, chunks, dim=2)]
    assert all(part.dtype == torch.float32 for part in parts)
    assert spectral_error_db(torch.cat((*parts, narrow.flush(0))), decoded(decoder, codes)) < BOUND_DB


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        (lambda x: x, -301, -299),
        (lambda x: x * (1 + 1e-3), -61, -59),
        # noise at -54 dB in a frequency band without other signal
        (lambda x: x + 1e-3 * torch.sin(torch.arange(len(x)) * 2.5), 5.9, 6.1),
        (lambda x: -x, 5.9, 6.1),
        (torch.zeros_like, -0.1, 0.1),
        (lambda x: torch.where(torch.arange(len(x)) == 99, math.nan, x), math.inf, math.inf),
        (lambda x: torch.where(torch.arange(len(x)) == 99, math.inf, x), math.inf, math.inf),
    ],
)
def test_spectral_error_is_the_error_of_the_worst_band(change, low, high) -> None:
    time = torch.arange(RATE_HZ // 2, dtype=torch.float64) / RATE_HZ
    tone = 0.5 * torch.sin(2 * math.pi * 440 * time)
    assert low <= spectral_error_db(change(tone), tone) <= high


def test_health_shows_the_format_of_the_codec(
    tiny_dia: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"device": CPU, "dtype": torch.float32, "max_rows": 2, "guards": None, "capture": GraphCapture(CPU)}
    runner = load_runner(tiny_dia, tiny_dia / "dac", codec_dtype="auto", **options)
    facts = dict(runner.setup)
    assert facts["codec_dtype"] == "float16"
    assert float(facts["codec_error_db"]) < BOUND_DB
    plain = load_runner(tiny_dia, tiny_dia / "dac", **options)
    assert "codec_dtype" not in dict(plain.setup)
    request = speech("The codes do not change.", frames=30)
    assert np.array_equal(alone(runner, request), alone(plain, request))
    monkeypatch.setattr("app.nn.dac.precision.BOUND_DB", -150.0)
    monkeypatch.setattr("app.engines.dia.loading.BOUND_DB", -150.0)
    facts = dict(load_runner(tiny_dia, tiny_dia / "dac", codec_dtype="auto", **options).setup)
    assert facts["codec_dtype"] == "float32"
    assert "above -150 dB: float16 -" in str(facts["codec_reason"])
    assert "decodes in float32" in caplog.text
