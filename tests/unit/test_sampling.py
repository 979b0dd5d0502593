"""Sampling: correct probabilities, no influence of other rows, separate parameters for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from app.runtime.sampling import ReferenceNoise, Sampler, SamplingParams, draw, exponential_noise, fast_path

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """The place of one value in the noise of a frame with `codebooks` codebooks of `codes` codes each."""

    codebooks: int
    codes: int
    seed: int
    frame: int
    codebook: int
    code: int

    def noise(self) -> torch.Tensor:
        return exponential_noise(torch.tensor([self.seed]), torch.tensor([self.frame]), self.codebooks, self.codes)


# Found by search: the 24 bits of these values are all ones. In float32 they round to the uniform 1.0.
CSM_FULL_BITS = [
    Place(32, 2048, 0, 456, 6, 102),
    Place(32, 2048, 0, 527, 31, 1697),
    Place(32, 2048, 0, 782, 15, 1418),
    Place(32, 2048, 0, 2035, 1, 148),
]
# The codes from 1024 on are EOS, PAD and BOS: Dia masks them in all channels but the first.
DIA_FULL_BITS = [
    Place(9, 1028, 0, 447_212, 7, 1024),
    Place(9, 1028, 0, 1_657_061, 8, 1025),
    Place(9, 1028, 0, 419_617, 3, 1026),
]
FULL_BITS = CSM_FULL_BITS + DIA_FULL_BITS


def noise(seeds: list[int], frames: list[int], codebooks: int = 4, codes: int = 500) -> torch.Tensor:
    return exponential_noise(torch.tensor(seeds), torch.tensor(frames), codebooks, codes)


def test_noise_is_exponential() -> None:
    drawn = noise(list(range(50)), [7] * 50, 8, 1000)
    assert drawn.shape == (50, 8, 1000)
    assert float(drawn.min()) > 0
    assert float(drawn.mean()) == pytest.approx(1, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1, abs=0.02)
    shares = torch.exp(-drawn).flatten().histc(20, 0, 1) / drawn.numel()
    assert float((shares - 0.05).abs().max()) < 0.002


def test_noise_depends_on_seed_frame_codebook_and_code() -> None:
    whole = noise([1, 2, 1, -5, 2**62], [0, 0, 1, 3, 9])
    assert torch.equal(noise([-5], [3])[0], whole[3])
    flat = torch.cat([row.flatten() for row in whole])
    assert len(flat.unique()) > 0.999 * len(flat)  # the values have 24 bits, so a few are equal by chance
    for other in whole[1:]:
        assert abs(float(torch.corrcoef(torch.stack((whole[0].flatten(), other.flatten())))[0, 1])) < 0.08
    neighbours = noise(list(range(200)), [0] * 200, 1, 50)[:, 0]
    assert float(torch.corrcoef(neighbours.T).fill_diagonal_(0).abs().max()) < 0.35


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    count = 20_000
    drawn = noise(list(range(count)), [0] * count, 1, 5)[:, 0]
    picked = Sampler([SamplingParams(0.7, 0)] * count, CPU).pick(logits.expand(count, -1), drawn)
    shares = torch.bincount(picked, minlength=5) / count
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.7, 0), atol=0.012)


def test_each_row_has_its_own_sampling_parameters() -> None:
    params = [
        SamplingParams(0.0),
        SamplingParams(1.0, 1),
        SamplingParams(0.8, 3),
        SamplingParams(5.0, 0),
        SamplingParams(1.0, 0, 0.5),
        SamplingParams(1.0, 9999),
        SamplingParams(1.0, 5, 0.9),
    ]
    random = torch.Generator().manual_seed(1)
    for frame in range(30):
        logits = torch.randn(len(params), 40, generator=random) * 2
        drawn = noise(list(range(len(params))), [frame] * len(params), 1, 40)[:, 0]
        together = Sampler(params, CPU).pick(logits, drawn)
        for row, knob in enumerate(params):
            lone = Sampler([knob], CPU).pick(logits[row : row + 1], drawn[row : row + 1])
            assert int(lone[0]) == int(together[row])
        assert together[0] == logits[0].argmax()
        assert together[1] == logits[1].argmax()
        assert together[2] in logits[2].topk(3).indices
        ordered = logits[4].softmax(0).sort(descending=True)
        most = int((ordered.values.cumsum(0) < 0.5).sum()) + 1
        assert together[4] in ordered.indices[:most]


def test_scores_tied_with_the_last_kept_one_are_kept() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    picked = {
        int(Sampler([SamplingParams(5.0, 2)], CPU).pick(logits, noise([seed], [0], 1, 5)[:, 0])[0])
        for seed in range(300)
    }
    assert picked == {0, 1, 2, 3}


def test_greedy_needs_no_noise() -> None:
    assert Sampler([SamplingParams(0.0)], CPU).pick(torch.tensor([[0.0, 2.0]]), None).tolist() == [1]
    with pytest.raises(ValueError, match="noise"):
        Sampler([SamplingParams(0.0), SamplingParams(1.0)], CPU).pick(torch.zeros(2, 2), None)


def test_reference_noise_draws_like_torch_multinomial() -> None:
    logits = torch.randn(1, 67, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    expected = [int(torch.multinomial(torch.softmax(logits, -1), 1)) for _ in range(20)]
    reference, sampler = ReferenceNoise(9), Sampler([SamplingParams(1.0, 0)], CPU)
    assert [int(sampler.pick(logits, reference.draw(67))[0]) for _ in range(20)] == expected


@pytest.mark.parametrize("few_", [False, True])
def test_device_parameters_draw_like_host_parameters(few_: bool) -> None:
    """CUDA graphs capture `draw`. An inactive row may have any parameters and does not change other rows."""
    params = [
        SamplingParams(0.9, 50),
        SamplingParams(0.0, 5),
        SamplingParams(1.4, 0),
        SamplingParams(0.7, 1),
        SamplingParams(1.0, 64),
    ]
    params += [SamplingParams(1.2, 40, 0.3), SamplingParams(0.8, 64, 0.95), SamplingParams(1.0, 3, 0.01)]
    if not few_:
        params += [SamplingParams(1.0, 300), SamplingParams(0.9, 0, 0.8), SamplingParams(1.0, 400, 0.99)]
    assert fast_path(params, 1000) is few_
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(params), 1000, generator=generator) * 3
    logits[:, 17] = logits[:, 19]  # ties
    noise = exponential_noise(torch.arange(len(params)), torch.arange(len(params)), 1, 1000)
    standing = SamplingParams(1.0, 700, 0.5)
    every = [*params, standing]
    parameters = [
        torch.tensor(values) for values in zip(*((k.temperature, k.top_k, k.top_p) for k in every), strict=True)
    ]
    padded, loud = torch.cat((logits, logits[:1]))[:, None], torch.cat((noise, noise[:1]))
    drawn = draw(padded, *parameters, loud, fast_path=few_)[:-1, 0]
    assert torch.equal(drawn, Sampler(params, torch.device("cpu")).pick(logits, noise[:, 0]))


@pytest.mark.parametrize(
    ("params", "size", "allowed"),
    [
        (SamplingParams(0.9, 50, 0.9), 2048, True),
        (SamplingParams(0.9, 64, 0.5), 2048, True),
        (SamplingParams(0.9, 1, 0.01), 2048, True),
        (SamplingParams(0.9, 0), 2048, True),
        (SamplingParams(0.9, 5000), 2048, True),
        (SamplingParams(0.9, 65), 2048, False),
        (SamplingParams(0.9, 65, 0.9), 2048, False),
        (SamplingParams(0.9, 0, 0.9), 2048, False),
        (SamplingParams(0.9, 2048, 0.9), 2048, False),
        (SamplingParams(0.9, 2047), 2048, False),
    ],
)
def test_only_limits_among_the_best_codes_are_on_the_fast_path(
    params: SamplingParams, size: int, allowed: bool
) -> None:
    assert fast_path([params], size) is allowed
    assert fast_path([SamplingParams(), params, SamplingParams(0.0)], size) is allowed


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("codes", [7, 64, 65, 300, 2048])
def test_row_draws_the_same_codes_alone_and_beside_rows_that_need_a_sort(codes: int, rounded: bool) -> None:
    """rounded: many codes have equal scores, also at the limit of top_k and beyond the best 64 codes."""
    generator = torch.Generator().manual_seed(codes)
    short = [
        SamplingParams(temperature, top_k, top_p)
        for temperature in (0.0, 0.6, 1.3)
        for top_k in (1, 2, 5, 50, 63, 64)
        for top_p in (1.0, 0.99, 0.7, 0.3, 0.02)
    ]
    short = [each for each in short if fast_path([each], codes)] + [SamplingParams(0.9, 0)]
    wide = [SamplingParams(1.1, 200, 0.8), SamplingParams(1.0, 0, 0.5), SamplingParams(0.7, 100)]

    def tensors(params: Sequence[SamplingParams]) -> list[torch.Tensor]:
        return [torch.tensor(each) for each in zip(*((k.temperature, k.top_k, k.top_p) for k in params), strict=True)]

    for frame in range(6):
        logits = torch.randn(len(short) + len(wide), 2, codes, generator=generator) * (1 + frame % 3)
        if rounded:
            logits = logits.round()
        seeds = torch.arange(len(logits))
        noise = exponential_noise(seeds, torch.full_like(seeds, frame), 2, codes)
        count = len(short)
        alone = draw(logits[:count], *tensors(short), noise[:count], fast_path=True)
        beside = draw(logits, *tensors([*short, *wide]), noise)[:count]
        assert torch.equal(alone, beside)
        for codebook in range(0 if rounded else 2):  # `pick` may drop a part of the codes with the score at the limit
            picked = Sampler(short, CPU).pick(logits[:count, codebook], noise[:count, codebook])
            assert torch.equal(alone[:, codebook], picked)


@pytest.mark.parametrize("place", FULL_BITS)
def test_noise_from_24_one_bits_is_small_and_above_zero(place: Place) -> None:
    noise = place.noise()[0]
    assert float(noise[place.codebook, place.code]) == pytest.approx(2**-24, rel=1e-3)
    assert int((noise == noise.min()).sum()) == 1


def plain_noise(
    seeds: Sequence[int], frames: Sequence[int], codebooks: int, codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the noise with NumPy's unsigned integers, without a limit on the uniform number; also return where its 24
    bits are all ones."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    state = mix(mix(np.array(seeds, np.uint64) * golden + np.uint64(1)) + np.array(frames, np.uint64) * golden)
    count = np.arange(1, codebooks * codes + 1, dtype=np.uint64)
    bits = torch.from_numpy((mix(state[:, None] + count * golden) >> np.uint64(40)).astype(np.int64))
    noise = -torch.log((bits.to(torch.float32) + 0.5) * 2.0**-24)
    return noise.view(-1, codebooks, codes), (bits == 2**24 - 1).view(-1, codebooks, codes)


@pytest.mark.parametrize(
    ("seeds", "frames", "codebooks", "codes", "full_bits"),
    [
        (range(64), range(64), 32, 2048, []),
        (range(1000, 1100), range(100), 9, 1028, []),
        ([0] * 80, range(450, 530), 32, 2048, [[6, 6, 102], [77, 31, 1697]]),
    ],
)
def test_only_the_noise_from_24_one_bits_is_limited(
    seeds: Sequence[int], frames: Sequence[int], codebooks: int, codes: int, full_bits: list[list[int]]
) -> None:
    computed = exponential_noise(torch.tensor(seeds), torch.tensor(frames), codebooks, codes)
    plain, full = plain_noise(seeds, frames, codebooks, codes)
    assert full.nonzero().tolist() == full_bits
    assert torch.equal(computed.view(torch.int32)[~full], plain.view(torch.int32)[~full])
    assert bool((plain[full] == 0).all())
    assert bool((computed[full] > 0).all())


DRAWS = ["pick", "draw", "draw few"]


def drawn_by(how: str, logits: torch.Tensor, params: SamplingParams, noise: torch.Tensor) -> list[int]:
    """Draw the codes of one frame from logits and noise (C, V)."""
    if how == "pick":
        return Sampler([params] * len(logits), CPU).pick(logits, noise).tolist()
    parameters = torch.tensor([params.temperature]), torch.tensor([params.top_k]), torch.tensor([params.top_p])
    return draw(logits[None], *parameters, noise[None], fast_path=how == "draw few")[0].tolist()


def removals(place: Place) -> list[tuple[torch.Tensor, SamplingParams]]:
    """Return logits of a frame and sampling parameters that remove the code of this place: by top-k, by a mask, by
    top-p."""
    logits = torch.randn(place.codebooks, place.codes, generator=torch.Generator().manual_seed(place.frame))
    low, masked = logits.clone(), logits.clone()
    low[place.codebook, place.code] = -9.0
    masked[place.codebook, place.code] = -math.inf
    return [(low, SamplingParams(0.9, 50)), (masked, SamplingParams(0.9, 0)), (low, SamplingParams(0.9, 0, 0.9))]


@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("place", FULL_BITS)
def test_removed_code_with_noise_from_24_one_bits_is_not_drawn(place: Place, how: str) -> None:
    for logits, params in removals(place):
        if how == "draw few" and not fast_path([params], place.codes):
            continue
        assert drawn_by(how, logits, params, place.noise()[0])[place.codebook] != place.code


@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("place", FULL_BITS)
def test_kept_code_with_noise_from_24_one_bits_is_drawn(place: Place, how: str) -> None:
    logits = torch.zeros(place.codebooks, place.codes)
    assert drawn_by(how, logits, SamplingParams(0.9, 0), place.noise()[0])[place.codebook] == place.code


@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_removed_code_is_not_drawn_even_with_zero_noise(how: str, zero: float) -> None:
    """PyTorch's own exponential noise may be 0."""
    logits = torch.tensor([[0.0, 3.0, 2.0, -math.inf]])
    noise = torch.tensor([[zero, 1.0, 1.0, zero]])
    assert drawn_by(how, logits, SamplingParams(1.0, 2), noise) == [1]
    assert drawn_by(how, logits, SamplingParams(1.0, 3), noise) == [0]


@pytest.mark.slow
def test_no_draw_of_many_frames_is_outside_top_k() -> None:
    """In 2,560 frames of CSM, ten draws have noise with 24 ones at a removed code."""
    count, at_once = 2560, 16
    logits = torch.randn(32, 2048, generator=torch.Generator().manual_seed(0)).mul(2).expand(at_once, -1, -1)
    kept = logits >= logits.topk(50, dim=-1).values[..., -1:]
    parameters = torch.ones(at_once), torch.full((at_once,), 50), torch.ones(at_once)
    for begin in range(0, count, at_once):
        noise = exponential_noise(torch.zeros(at_once).long(), torch.arange(begin, begin + at_once), 32, 2048)
        drawn = draw(logits, *parameters, noise, fast_path=True)
        assert bool(kept.gather(-1, drawn[..., None]).all())
