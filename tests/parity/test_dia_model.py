"""Dia's model gives the codes of transformers in float32, in a plain loop without rows and scheduling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.dia.checkpoint import weights_of
from app.engines.dia.config import DiaConfig, read_config
from app.engines.dia.delay import DelayPattern
from app.engines.dia.guidance import DEFAULTS, Guided, pick
from app.engines.dia.model import DiaModel
from app.engines.dia.prompt import text_ids
from app.runtime.sampling import ReferenceNoise, SamplingParams
from app.weights.tensors import open_checkpoints
from tests.support import dia_oracle as oracle

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
FRAMES = 40
TEXT = "[S1] Hello there, how are you? [S2] Fine. (laughs)"
GREEDY = Guided(SamplingParams(temperature=0.0, top_k=45, top_p=1.0), 3.0)


def load(folder: Path) -> DiaModel:
    config = read_config(folder)
    model = DiaModel(config, device=CPU, dtype=torch.float32)
    model.load(weights_of(open_checkpoints(folder), config))
    return model.eval()


@torch.inference_mode()
def generate(
    model: DiaModel, text: str, frames: int, how: Guided = GREEDY, *, prompt: Any = None, seed: int | None = None
) -> torch.Tensor:
    """Generate the frames (T, C) of one text."""
    c = model.config
    cache, delays = model.cache(1), DelayPattern(c, 1, CPU)
    for _ in model.encode_text(torch.tensor(text_ids(text, c.max_text)), cache, 0):
        pass
    prompt = torch.zeros(0, c.channels, dtype=torch.long) if prompt is None else prompt
    delays.begin(0, prompt, frames)
    model.read(delays.prompt_codes(0, 0, len(prompt)), cache, 0, 0)
    noise = None if seed is None else ReferenceNoise(seed)
    position, frames_found = len(prompt), []
    row = torch.zeros(1, dtype=torch.long)
    while True:
        logits = model.advance(delays.at(row, torch.tensor([position])), cache, [0], [position])
        drawn = noise.draw(c.channels * c.audio_vocab).view(c.channels, -1) if noise else None
        codes, _ = pick(c, logits, [how], drawn)
        position += 1
        found, count = delays.put(row, torch.tensor([position]), codes)
        index = position - delays.first_frame(len(prompt))
        if 0 <= index < int(count):
            frames_found.append(found[0])
        if index + 1 >= int(count):
            return torch.stack(frames_found) if frames_found else torch.zeros(0, c.channels, dtype=torch.long)


@pytest.fixture(scope="module")
def reference() -> Any:
    return oracle.model(seed=1)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.save(reference, tmp_path_factory.mktemp("dia"))


@pytest.fixture(scope="module")
def model(folder: Path) -> DiaModel:
    return load(folder)


def as_bytes(text: str) -> bytes:
    return bytes(text_ids(text, 1024))


@pytest.mark.parametrize("text", [TEXT, "[S1] x", "Grüße — 早上好 😀 \n[S3] what?"])
def test_greedy_codes_are_equal(model: DiaModel, reference: Any, text: str) -> None:
    [expected] = oracle.generate(reference, [as_bytes(text)], FRAMES)
    assert len(expected) == FRAMES
    assert torch.equal(generate(model, text, FRAMES), expected)
    assert len(expected.unique()) > 60  # the model does not repeat one code


@pytest.mark.parametrize("scale", [0.0, 1.5, 8.0])
def test_codes_are_equal_for_other_guidance_scales(model: DiaModel, reference: Any, scale: float) -> None:
    how = Guided(GREEDY.params, scale)
    [expected] = oracle.generate(reference, [as_bytes(TEXT)], FRAMES, guidance_scale=scale or None)
    assert torch.equal(generate(model, TEXT, FRAMES, how), expected)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "params", [SamplingParams(1.8, 45, 0.9), SamplingParams(1.2, 30, 0.95), SamplingParams(1.0, 5, 1.0)]
)
def test_seeded_codes_are_equal(model: DiaModel, reference: Any, seed: int, params: SamplingParams) -> None:
    sampling = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    [expected] = oracle.generate(reference, [as_bytes(TEXT)], FRAMES, seed=seed, **sampling)
    assert torch.equal(generate(model, TEXT, FRAMES, Guided(params, 3.0), seed=seed), expected)


@pytest.mark.parametrize("length", [1, 7, 30])
def test_codes_are_equal_after_a_recording(model: DiaModel, reference: Any, length: int) -> None:
    prompt = torch.randint(0, 1024, (length, 9), generator=torch.Generator().manual_seed(length))
    [expected] = oracle.generate(reference, [as_bytes(TEXT)], FRAMES, prompts=[prompt])
    assert torch.equal(generate(model, TEXT, FRAMES, prompt=prompt), expected)


def test_speech_ends_as_in_transformers(tmp_path: Path) -> None:
    """EOS is as likely as a code that the model draws sometimes."""
    plain = oracle.model(seed=3)
    codes = oracle.generate(plain, [as_bytes(TEXT)], 120)[0][:, 0]
    values, counts = codes[30:].unique(return_counts=True)
    ending = oracle.model(seed=3, ending=int(values[counts.argmax()]))
    [expected] = oracle.generate(ending, [as_bytes(TEXT)], 120)
    assert 5 < len(expected) < 120
    assert torch.equal(generate(load(oracle.save(ending, tmp_path)), TEXT, 120), expected)


@pytest.mark.parametrize("file", ["dia-v1.pth", "model.safetensors"])
def test_both_layouts_give_the_same_model(model: DiaModel, folder: Path, tmp_path: Path, file: str) -> None:
    other = load(oracle.as_nari(folder, tmp_path, file=file))
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in other.named_parameters()]
    for name in names:
        assert torch.equal(model.get_parameter(name), other.get_parameter(name)), name


def test_shards_give_the_same_model(reference: Any, model: DiaModel, tmp_path: Path) -> None:
    other = load(oracle.save(reference, tmp_path, max_shard_size="1MB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(generate(other, TEXT, 20), generate(model, TEXT, 20))


def test_old_and_new_config_keys_give_the_same_config(folder: Path, tmp_path: Path) -> None:
    """transformers 4 and nari write rope_theta, and write token ids at the top level.

    Newer files have both in the sections of the encoder and the decoder.
    """
    raw = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in raw["decoder_config"]
    old = dict(raw, eos_token_id=1024, pad_token_id=1025, bos_token_id=1026, norm_eps=1e-5)
    for part in ("encoder_config", "decoder_config"):
        inner = dict(old[part])
        del inner["rope_parameters"]
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            inner.pop(name, None)
        old[part] = inner | {"rope_theta": 10000.0, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path) == read_config(folder)


def test_unconditional_cross_attention_is_constant(reference: Any, model: DiaModel) -> None:
    """A text of zeros gives the same cross-attention at every position, equal to `DiaModel.unconditional`."""
    with torch.no_grad():
        zeros = torch.zeros(1, 50, dtype=torch.long)
        hidden = reference.model.encoder(zeros, attention_mask=torch.ones_like(zeros)).last_hidden_state
        for layer, block in enumerate(reference.model.decoder.layers):
            cross = block.cross_attention
            expected = cross.o_proj(cross.v_proj(hidden))[0]
            assert (expected - model.unconditional[layer]).abs().max() < 1e-5


# ---- v0.1, which transformers does not have: the differences are implemented here


class ReferenceV01:
    """v0.1 built from transformers' modules, without KV cache, with RoPE in cross-attention and nari's old sampler."""

    def __init__(self, reference: Any) -> None:
        self.model = reference.model
        self.head = reference.logits_dense

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Apply RoPE to (T, heads, d) as RotaryEmbedding does in layers.py of nari-labs/dia at 2811af1."""
        half = x.shape[-1] // 2
        timescale = 10_000 ** (2.0 * torch.arange(half) / x.shape[-1])
        angles = torch.arange(len(x))[:, None, None] / timescale
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1
        )

    def logits(self, text: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits (C, V) after ids (T, C)."""
        decoder = self.model.decoder
        encoded = self.model.encoder(text[None]).last_hidden_state
        x = decoder.embeddings(ids[None])
        count = len(ids)
        rotary = decoder.rotary_emb(x, position_ids=torch.arange(count)[None])
        causal = torch.full((count, count), -torch.inf).triu(1)[None, None]
        for block in decoder.layers:
            x = x + block.self_attention(block.pre_sa_norm(x), rotary, causal)[0]
            cross = block.cross_attention
            size = cross.head_dim
            q = self._rotate(cross.q_proj(block.pre_ca_norm(x))[0].view(count, -1, size))
            k = self._rotate(cross.k_proj(encoded)[0].view(len(text), -1, size))
            v = cross.v_proj(encoded)[0].view(len(text), -1, size)
            weights = torch.einsum("thd,shd->hts", q, k).softmax(-1)
            attended = torch.einsum("hts,shd->thd", weights, v).reshape(1, count, -1)
            x = x + cross.o_proj(attended)
            x = x + block.mlp(block.pre_mlp_norm(x))
        return self.head(decoder.norm(x)[0, -1]).view(9, -1)

    @torch.no_grad()
    def generate(self, text: bytes, frames: int, how: Guided, prompt: torch.Tensor, seed: int | None) -> torch.Tensor:
        encoded = torch.tensor(list(text))
        pattern = oracle.inputs([text], [prompt])["decoder_input_ids"][0]
        lead = 1 + len(prompt)
        ids = pattern[:lead]
        end = lead + frames
        torch.manual_seed(seed or 0)
        for position in range(lead, 10_000):
            conditional, unconditional = self.logits(encoded, ids), self.logits(torch.zeros_like(encoded), ids)
            guided = conditional + how.cfg_scale * (conditional - unconditional)
            guided[:, 1025:] = -torch.inf
            guided[1:, 1024:] = -torch.inf
            guided[0, 1024] *= 0.8
            drawn = self._draw(guided, how.params, sample=seed is not None)
            if drawn[0] == oracle.EOS:
                end = min(end, position)
            for channel, delay in enumerate(oracle.DELAYS):
                if position >= end + delay:
                    drawn[channel] = oracle.EOS if position == end + delay else oracle.PAD
                if position < len(pattern) and pattern[position, channel] != oracle.PAD:
                    drawn[channel] = pattern[position, channel]
            ids = torch.cat((ids, drawn[None]))
            if position >= end + max(oracle.DELAYS):
                break
        return torch.stack([ids[lead + d : end + d, c] for c, d in enumerate(oracle.DELAYS)], dim=1)

    @staticmethod
    def _draw(logits: torch.Tensor, params: SamplingParams, *, sample: bool) -> torch.Tensor:
        """Draw codes as _sample_next_token of the same commit does."""
        if not sample:
            return logits.argmax(-1)
        logits = logits / params.temperature
        best = logits.argmax(-1)
        logits[best != oracle.EOS, oracle.EOS] = -torch.inf
        order = logits.topk(params.top_k, dim=-1).indices
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).scatter(-1, order, False), -torch.inf)
        if params.top_p < 1:
            probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True)
            drop = (probabilities.cumsum(-1) > params.top_p).roll(1, -1)
            drop[:, 0] = False
            logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]


@pytest.fixture(scope="module")
def v01(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DiaModel:
    return load(oracle.as_v01(folder, tmp_path_factory.mktemp("v01")))


@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("seed", [None, 4])
def test_v01_codes_are_equal(v01: DiaModel, reference: Any, model: DiaModel, length: int, seed: int | None) -> None:
    assert v01.config.release == "v0.1"
    params = DEFAULTS["v0.1"].params if seed is not None else GREEDY.params
    how = Guided(params, 3.0)
    prompt = torch.randint(0, 1024, (length, 9), generator=torch.Generator().manual_seed(2))
    expected = ReferenceV01(reference).generate(as_bytes(TEXT), 20, how, prompt, seed)
    found = generate(v01, TEXT, 20, how, prompt=prompt, seed=seed)
    assert torch.equal(found, expected)
    assert not torch.equal(generate(model, TEXT, 20, how, prompt=prompt, seed=seed), expected)


@pytest.mark.parametrize(("score", "ends"), [(0.9, (False, False)), (1.2, (True, False)), (1.3, (True, True))])
def test_only_v01_reduces_the_score_of_the_end(
    model: DiaModel, v01: DiaModel, score: float, ends: tuple[bool, bool]
) -> None:
    """The best code has the score 1. The speech ends if the score of EOS is larger; v0.1 multiplies it by 0.8."""
    for config, expected in zip((model.config, v01.config), ends, strict=True):
        logits = torch.zeros(1, config.channels, config.audio_vocab)
        logits[0, 0, 7] = 1.0
        logits[0, 0, config.eos] = score
        codes, ending = pick(config, (logits, logits), [GREEDY], None)
        assert (ending.tolist(), codes[0, 0].item()) == ([expected], config.eos if expected else 7)


def test_v01_speech_ends_where_the_reference_ends(reference: Any, tmp_path: Path) -> None:
    plain = ReferenceV01(oracle.model(seed=3))
    how, prompt = GREEDY, torch.zeros(0, 9, dtype=torch.long)
    codes = plain.generate(as_bytes(TEXT), 40, how, prompt, None)[:, 0]
    ending = oracle.model(seed=3, ending=int(codes[25]))
    with torch.no_grad():
        ending.logits_dense.weight[oracle.EOS] *= 1.3  # v0.1 multiplies it by 0.8
    expected = ReferenceV01(ending).generate(as_bytes(TEXT), 40, how, prompt, None)
    assert 0 < len(expected) < 40
    folder = oracle.as_v01(oracle.save(ending, tmp_path / "a"), tmp_path / "b")
    assert torch.equal(generate(load(folder), TEXT, 40), expected)


def test_config_gives_the_release(folder: Path, v01: DiaModel) -> None:
    found: DiaConfig = read_config(folder)
    assert found.release == "0626"
    assert found.decoder.cross is not None
    assert not found.decoder.cross.rotated
    assert found.max_frames == v01.config.max_frames == 3056
