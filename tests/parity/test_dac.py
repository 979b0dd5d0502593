"""DAC equals transformers' DacModel: full decoding, streaming and encoding, with random shapes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import WeightsUnavailable
from app.nn.dac.checkpoint import load_codec
from app.nn.dac.config import DacConfig, read_dac_config, read_release
from app.nn.dac.model import DacDecoder, DacEncoder
from app.weights.tensors import Checkpoint
from tests.support import csm_oracle
from tests.support.pickles import RunsCode
from tests.support.random_dia import fabricate_dac

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
FRAMES = 60
EXACT = 1e-6  # relative to full scale; the smallest step of 16-bit audio is 3e-5


def drawn(seed: int) -> dict[str, Any]:
    """Return a small codec with a random shape."""
    random = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=random))]

    ratios = one_of([2, 4, 8, 8], [2, 2, 4], [4, 2], [2, 6, 4], [8, 2, 2])
    return {
        "downsampling_ratios": ratios,
        "encoder_hidden_size": one_of(3, 4, 8),
        "decoder_hidden_size": one_of(3, 5, 8) * 2 ** len(ratios),
        "codebook_size": one_of(16, 64, 1024),
        "codebook_dim": one_of(4, 8),
        "n_codebooks": one_of(2, 5, 9),
    }


SHAPES = [{}, *(drawn(seed) for seed in range(4))]


@pytest.fixture(scope="module", params=range(len(SHAPES)))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, DacConfig, Checkpoint]:
    folder = fabricate_dac(tmp_path_factory.mktemp("dac"), seed=request.param, changes=SHAPES[request.param])
    return opened(folder)


def opened(folder: Path) -> tuple[Any, DacConfig, Checkpoint]:
    config = read_dac_config(folder)
    return csm_oracle.dac(folder), config, load_codec(folder, config)


def decoder(config: DacConfig, weights: Checkpoint, rows: int, **changes: Any) -> DacDecoder:
    dac_decoder = DacDecoder(config, rows=rows, device=CPU, **changes)
    dac_decoder.load(weights)
    return dac_decoder


def encoder(config: DacConfig, weights: Checkpoint) -> DacEncoder:
    dac_encoder = DacEncoder(config)
    dac_encoder.load(weights)
    return dac_encoder


def some_codes(config: DacConfig, rows: int, frames: int = FRAMES) -> torch.Tensor:
    random = torch.Generator().manual_seed(6)
    return torch.randint(0, config.codebook_size, (rows, config.codebooks, frames), generator=random)


@torch.no_grad()
def whole(reference: Any, codes: torch.Tensor) -> torch.Tensor:  # (n, K, T) -> (n, N)
    sound: torch.Tensor = reference.decode(audio_codes=codes).audio_values
    if codes.shape[2] > 20:
        assert 0.02 < float(sound.std()) < 0.5  # loud enough for a useful comparison, and far from clipping
    return sound


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def streamed(dac_decoder: DacDecoder, row: int, codes: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    parts = [dac_decoder.decode([row], piece)[0] for piece in torch.split(codes[None], pieces, dim=2)]
    return torch.cat([*parts, dac_decoder.flush(row)])


@pytest.mark.parametrize("pieces", ["1", "4", "8", "13", "all", "mixed"])
def test_streamed_audio_equals_transformers_for_any_chunk_size(
    pair: tuple[Any, DacConfig, Checkpoint], pieces: str
) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 1)
    random = torch.Generator().manual_seed(3)
    sizes: list[int] = []
    while (left := FRAMES - sum(sizes)) > 0:
        size = int(torch.randint(1, 20, (), generator=random)) if pieces == "mixed" else FRAMES
        sizes.append(min(left, int(pieces) if pieces.isdigit() else size))
    sound = streamed(decoder(config, weights, 1), 0, codes[0], sizes)
    assert worst(sound, whole(reference, codes)[0]) < EXACT


def test_many_frames_in_one_call_are_all_decoded(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 1, 150)
    assert worst(streamed(decoder(config, weights, 1), 0, codes[0], [150]), whole(reference, codes)[0]) < EXACT


def test_streams_shorter_than_the_lookahead_are_complete(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    """Each stream has its exact length and leaves no state for the next stream in its row."""
    reference, config, weights = pair
    dac_decoder = decoder(config, weights, 1)
    for frames in (1, 2, dac_decoder.lookahead_frames, dac_decoder.lookahead_frames + 1):
        codes = some_codes(config, 1, frames)
        assert worst(streamed(dac_decoder, 0, codes[0], [1] * frames), whole(reference, codes)[0]) < EXACT
    assert dac_decoder.flush(0).shape == (0,)


def test_streamed_chunk_lengths_match_the_lookahead(tmp_path: Path) -> None:
    """With the published ratios, 9 frames give no samples, 10 frames give 10 * 512 - 4757, and each later frame gives
    512."""
    config = read_dac_config(fabricate_dac(tmp_path))
    dac_decoder = decoder(config, load_codec(tmp_path, config), 1)
    assert (dac_decoder.lookahead_samples, dac_decoder.lookahead_frames) == (4757, 10)
    lengths = [len(dac_decoder.decode([0], frame)[0]) for frame in some_codes(config, 1, 14).split(1, dim=2)]
    assert lengths == [0] * 9 + [363] + [512] * 4
    assert len(dac_decoder.flush(0)) == 4757


def test_rows_stream_independently(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    """Rows join, pause, end and restart in any order. Each row gives the same audio as alone."""
    reference, config, weights = pair
    places = [3, 0, 2]
    codes = some_codes(config, 3)
    expected = whole(reference, codes)
    dac_decoder = decoder(config, weights, 4)
    dac_decoder.decode([0, 1, 2, 3], some_codes(config, 4)[:, :, :9])  # gives the rows an earlier state
    for row in places:
        dac_decoder.reset(row)
    random = torch.Generator().manual_seed(1)
    done: list[int] = [0, 0, 0]
    parts: list[list[torch.Tensor]] = [[], [], []]
    rounds = 0
    while min(done) < FRAMES:
        rounds += 1
        going = [i for i in range(3) if done[i] < FRAMES and torch.rand((), generator=random) < 0.7]
        if not going:
            continue
        size = min(int(torch.randint(1, 7, (), generator=random)), *(FRAMES - done[i] for i in going))
        sounds = dac_decoder.decode(
            [places[i] for i in going], torch.stack([codes[i, :, done[i] : done[i] + size] for i in going])
        )
        for i, sound in zip(going, sounds, strict=True):
            parts[i].append(sound)
            done[i] += size
            if done[i] == FRAMES:
                parts[i].append(dac_decoder.flush(places[i]))
        if rounds == 4:  # one row restarts while the other rows continue
            dac_decoder.reset(places[1])
            done[1], parts[1] = 0, []
    for i in range(3):
        assert worst(torch.cat(parts[i]), expected[i]) < EXACT


def test_equal_chunks_give_bitwise_equal_audio(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    """The audio does not depend on the row, the decoder or earlier streams."""
    _, config, weights = pair
    codes = some_codes(config, 2)
    pieces = [9, 22, 22, 7]
    first = streamed(decoder(config, weights, 1), 0, codes[0], pieces)
    other = decoder(config, weights, 5)
    streamed(other, 3, codes[1], [FRAMES])
    other.decode([0, 4], codes[:, :, :17])
    assert torch.equal(streamed(other, 3, codes[0], pieces), first)


def test_duplicate_row_is_rejected(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    _, config, weights = pair
    with pytest.raises(ValueError, match="twice"):
        decoder(config, weights, 2).decode([1, 1], some_codes(config, 2))


def test_decoder_with_fewer_codebooks_equals_transformers(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 1)[:, :2]
    dac_decoder = decoder(config, weights, 1, codebooks=2)
    assert worst(streamed(dac_decoder, 0, codes[0], [20, 40]), whole(reference, codes)[0]) < EXACT
    with pytest.raises(ValueError, match="codebooks"):
        DacDecoder(config, rows=1, codebooks=config.codebooks + 1, device=CPU)


def test_half_precision_is_close(pair: tuple[Any, DacConfig, Checkpoint]) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 1)
    expected = whole(reference, codes)[0]
    dac_decoder = decoder(config, weights, 1, dtype=torch.bfloat16)
    error = streamed(dac_decoder, 0, codes[0], [8] * 7 + [4]) - expected
    assert 1e-6 < float(error.std() / expected.std()) < 0.03  # the error is below -30 dB, but not zero


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 1, 17])
def test_encoded_codes_are_equal(pair: tuple[Any, DacConfig, Checkpoint], extra: int) -> None:
    """The audio is longer than one encoder window. Zeros fill the last frame, as in transformers' processor."""
    reference, config, weights = pair
    hop = config.frame_samples
    samples = torch.randn(hop * 280 + extra, generator=torch.Generator().manual_seed(5)) * 0.3
    padded = torch.nn.functional.pad(samples, (0, -len(samples) % hop))
    expected = reference.encode(padded[None, None]).audio_codes[0]
    found = encoder(config, weights)(samples)
    assert found.shape == expected.shape == (config.codebooks, 280 - (-extra // hop))
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


def test_empty_audio_encodes_to_no_frames(tmp_path: Path) -> None:
    config = read_dac_config(fabricate_dac(tmp_path))
    assert encoder(config, load_codec(tmp_path, config))(torch.empty(0)).shape == (config.codebooks, 0)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_released_file_gives_the_same_codec(tmp_path: Path, shape: int) -> None:
    """descript's file has other tensor names, weight norm, and its shape in the metadata."""
    published = fabricate_dac(tmp_path / "published", seed=shape, changes=SHAPES[shape])
    release = fabricate_dac(tmp_path / "release", seed=shape, changes=SHAPES[shape], release=True)
    reference, config, weights = opened(published)
    assert read_dac_config(release) == config
    found = load_codec(release, config)
    assert set(found) == set(weights)
    for name in weights:
        assert torch.allclose(found.read(name), weights.read(name), rtol=1e-6, atol=0), name
    codes = some_codes(config, 1)
    assert worst(streamed(decoder(config, found, 1), 0, codes[0], [FRAMES]), whole(reference, codes)[0]) < EXACT
    samples = torch.randn(config.frame_samples * 40, generator=torch.Generator().manual_seed(5)) * 0.3
    assert torch.equal(encoder(config, found)(samples), encoder(config, weights)(samples))


def test_weight_norm_with_names_of_transformers_is_loaded(tmp_path: Path) -> None:
    """A training run with `apply_weight_norm` saves such files."""
    reference, config, weights = opened(fabricate_dac(tmp_path / "published"))
    reference.apply_weight_norm()
    (tmp_path / "trained").mkdir()
    save_file(dict(reference.state_dict()), tmp_path / "trained" / "model.safetensors")
    found = load_codec(tmp_path / "trained", config)
    for name in weights:
        assert torch.allclose(found.read(name), weights.read(name), rtol=1e-6, atol=0), name


def test_a_release_without_metadata_is_the_published_codec(tmp_path: Path) -> None:
    torch.save({f"decoder.model.0.weight_{part}": torch.ones(1, 1, 1) for part in "gv"}, tmp_path / "codec.pth")
    assert read_dac_config(tmp_path) == DacConfig()
    with pytest.raises(WeightsUnavailable, match="missing"):
        load_codec(tmp_path, DacConfig())
    (tmp_path / "codec.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        read_dac_config(tmp_path)


def test_release_runs_no_code(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": RunsCode(tmp_path / "ran")}, tmp_path / "codec.pth")
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        load_codec(tmp_path, DacConfig())
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_release_is_not_read_into_memory(tmp_path: Path) -> None:
    folder = fabricate_dac(tmp_path, release=True)
    tensors, _ = read_release(next(folder.glob("*.pth")))
    assert tensors
    assert f"{next(folder.glob('*.pth'))}\n" in Path("/proc/self/maps").read_text()


def test_load_error_names_every_wrong_tensor(tmp_path: Path) -> None:
    published = fabricate_dac(tmp_path)
    config = read_dac_config(published)
    tensors = load_file(published / "model.safetensors")
    del tensors["decoder.conv2.bias"]
    tensors["extra.weight"] = torch.zeros(2)
    tensors["encoder.conv1.bias"] = torch.zeros(3)
    save_file(tensors, published / "model.safetensors")
    with pytest.raises(WeightsUnavailable) as caught:
        load_codec(published, config)
    for part in ("missing: decoder.conv2.bias", "unexpected: extra.weight", "encoder.conv1.bias is [3], not [8]"):
        assert part in caught.value.reason
    save_file({"a": torch.zeros(1)}, published / "model.safetensors")
    with pytest.raises(WeightsUnavailable, match="contains no DAC codec"):
        load_codec(published, config)


@pytest.mark.parametrize(
    ("changes", "expected_message"),
    [
        ({"model_type": "mimi"}, "is not supported, only 'dac'"),
        ({"downsampling_ratios": [2, 4, 5, 8], "upsampling_ratios": None}, "must be even"),
        ({"upsampling_ratios": [8, 8, 4, 4]}, "different length"),
        ({"codebook_size": "many"}, "many"),
    ],
)
def test_invalid_config_is_rejected(tmp_path: Path, changes: dict[str, Any], expected_message: str) -> None:
    path = fabricate_dac(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsUnavailable, match=expected_message):
        read_dac_config(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.no_grad()
def test_full_size_codec_equals_transformers(tmp_path: Path) -> None:
    """The codec has the published shape with 77 million weights.

    The reference decodes in float64. In float32 its rounding error (1.0e-6) would be as large as the error of our codec
    (0.6 to 0.8e-6).
    """
    reference, config, weights = opened(fabricate_dac(tmp_path, size="full"))
    assert config == DacConfig()
    assert sum(parameter.numel() for parameter in reference.parameters()) == 76_620_777
    samples = torch.randn(512 * 100, generator=torch.Generator().manual_seed(5)) * 0.3
    assert torch.equal(encoder(config, weights)(samples), reference.encode(samples[None, None]).audio_codes[0])
    codes = some_codes(config, 2, 48)
    expected = whole(reference.double(), codes)
    dac_decoder = decoder(config, weights, 3)
    for pieces in ([1] * 12 + [4] * 9, [8] * 6, [9, 22, 17]):
        assert worst(streamed(dac_decoder, 1, codes[0], pieces), expected[0]) < EXACT
    parts = [dac_decoder.decode([2, 0], piece) for piece in codes.split(8, dim=2)]
    for i, row in enumerate((2, 0)):
        assert worst(torch.cat([*(part[i] for part in parts), dac_decoder.flush(row)]), expected[i]) < EXACT
    half = streamed(decoder(config, weights, 1, dtype=torch.bfloat16), 0, codes[0], [8] * 6)
    assert float((half - expected[0]).std() / expected[0].std()) < 0.03
