"""Draws: the right law, the same whatever the company, the knobs of each row its own."""

from __future__ import annotations

import pytest
import torch

from app.runtime.sampling import Knobs, ReferenceNoise, Sampler, draw, exponential_noise, few

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


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


def test_noise_belongs_to_seed_frame_codebook_and_code() -> None:
    whole = noise([1, 2, 1, -5, 2**62], [0, 0, 1, 3, 9])
    assert torch.equal(noise([-5], [3])[0], whole[3])
    flat = torch.cat([row.flatten() for row in whole])
    assert len(flat.unique()) > 0.999 * len(flat)  # 24 bits: a few meet by chance
    for other in whole[1:]:
        assert abs(float(torch.corrcoef(torch.stack((whole[0].flatten(), other.flatten())))[0, 1])) < 0.08
    neighbours = noise(list(range(200)), [0] * 200, 1, 50)[:, 0]
    assert float(torch.corrcoef(neighbours.T).fill_diagonal_(0).abs().max()) < 0.35


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    count = 20_000
    drawn = noise(list(range(count)), [0] * count, 1, 5)[:, 0]
    picked = Sampler([Knobs(0.7, 0)] * count, CPU).pick(logits.expand(count, -1), drawn)
    shares = torch.bincount(picked, minlength=5) / count
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.7, 0), atol=0.012)


def test_each_row_has_its_own_knobs() -> None:
    knobs = [
        Knobs(0.0),
        Knobs(1.0, 1),
        Knobs(0.8, 3),
        Knobs(5.0, 0),
        Knobs(1.0, 0, 0.5),
        Knobs(1.0, 9999),
        Knobs(1.0, 5, 0.9),
    ]
    random = torch.Generator().manual_seed(1)
    for frame in range(30):
        logits = torch.randn(len(knobs), 40, generator=random) * 2
        drawn = noise(list(range(len(knobs))), [frame] * len(knobs), 1, 40)[:, 0]
        together = Sampler(knobs, CPU).pick(logits, drawn)
        for row, knob in enumerate(knobs):
            lone = Sampler([knob], CPU).pick(logits[row : row + 1], drawn[row : row + 1])
            assert int(lone[0]) == int(together[row])
        assert together[0] == logits[0].argmax()
        assert together[1] == logits[1].argmax()
        assert together[2] in logits[2].topk(3).indices
        ordered = logits[4].softmax(0).sort(descending=True)
        most = int((ordered.values.cumsum(0) < 0.5).sum()) + 1
        assert together[4] in ordered.indices[:most]


def test_ties_with_the_last_kept_score_stay() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    picked = {int(Sampler([Knobs(5.0, 2)], CPU).pick(logits, noise([seed], [0], 1, 5)[:, 0])[0]) for seed in range(300)}
    assert picked == {0, 1, 2, 3}


def test_greedy_needs_no_noise() -> None:
    assert Sampler([Knobs(0.0)], CPU).pick(torch.tensor([[0.0, 2.0]]), None).tolist() == [1]
    with pytest.raises(ValueError, match="noise"):
        Sampler([Knobs(0.0), Knobs(1.0)], CPU).pick(torch.zeros(2, 2), None)


def test_reference_noise_draws_as_multinomial() -> None:
    logits = torch.randn(1, 67, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    expected = [int(torch.multinomial(torch.softmax(logits, -1), 1)) for _ in range(20)]
    reference, sampler = ReferenceNoise(9), Sampler([Knobs(1.0, 0)], CPU)
    assert [int(sampler.pick(logits, reference.draw(67))[0]) for _ in range(20)] == expected


@pytest.mark.parametrize("few_", [False, True])
def test_knobs_on_the_device_draw_as_knobs_on_the_host(few_: bool) -> None:
    """`draw` is what is recorded; a row that does not go on may have any knobs, and does no harm."""
    knobs = [Knobs(0.9, 50), Knobs(0.0, 5), Knobs(1.4, 0), Knobs(0.7, 1), Knobs(1.0, 64)]
    if not few_:
        knobs += [Knobs(1.0, 300), Knobs(0.9, 0, 0.8), Knobs(1.2, 40, 0.3), Knobs(1.0, 400, 0.99)]
    assert few(knobs, 1000) is few_
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(knobs), 1000, generator=generator) * 3
    logits[:, 17] = logits[:, 19]  # ties
    noise = exponential_noise(torch.arange(len(knobs)), torch.arange(len(knobs)), 1, 1000)
    standing = Knobs(1.0, 700, 0.5)
    every = [*knobs, standing]
    told = [torch.tensor(values) for values in zip(*((k.temperature, k.top_k, k.top_p) for k in every), strict=True)]
    padded, loud = torch.cat((logits, logits[:1]))[:, None], torch.cat((noise, noise[:1]))
    drawn = draw(padded, *told, loud, few=few_)[:-1, 0]
    assert torch.equal(drawn, Sampler(knobs, torch.device("cpu")).pick(logits, noise[:, 0]))
