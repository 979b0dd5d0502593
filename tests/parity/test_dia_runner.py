"""The Runner of Dia against transformers, whole: DiaProcessor, generate, the codec; from published-like files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.dia.loading import load_runner
from app.engines.dia.runner import DiaRunner
from app.types import Reference, Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support import dia_oracle as oracle
from tests.support.random_dia import fabricate_dia

pytestmark = pytest.mark.unit

FRAMES = 40
CPU = torch.device("cpu")
VOICE = Voice("v", "v", "cloned")
GREEDY = Sampling(temperature=0.0)
TEXT = "[S1] Hello there, how are you? [S2] Fine. (laughs)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("dia"), seed=1)


def make(folder: Path, **options: Any) -> DiaRunner:
    values = {"device": CPU, "dtype": torch.float32, "max_rows": 3, "guards": None, "exact": True} | options
    return load_runner(folder, folder / "dac", **values)


@pytest.fixture(scope="module")
def runner(folder: Path) -> DiaRunner:
    return make(folder)


def load(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = oracle.DiaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import DacFeatureExtractor, DacModel, DiaProcessor, DiaTokenizer

        return DiaProcessor(
            DacFeatureExtractor.from_pretrained(folder / "dac"),
            DiaTokenizer(),
            DacModel.from_pretrained(folder / "dac").eval(),
        )


def speak(runner: DiaRunner, *utterances: Utterance) -> list[tuple[np.ndarray, np.ndarray]]:
    """codes (T, C) and samples (N,) of each, spoken at the same time, each begun a few steps after the one before."""
    said: list[list[np.ndarray]] = [[] for _ in utterances]
    sound: list[list[np.ndarray]] = [[] for _ in utterances]
    waiting, live, turn = list(range(len(utterances))), [], 0
    while waiting or live:
        if waiting and turn % 5 == 0:
            row = waiting.pop(0)
            runner.admit(row, utterances[row])
            while not runner.prefill(row):
                pass
            live.append(row)
        turn += 1
        if not live:
            continue
        result = runner.step(live)
        assert result.silent is not None
        for i, row in enumerate(list(live)):
            if result.ended[i]:
                live.remove(row)
                runner.release(row)
            elif not result.silent[i]:
                said[row].append(result.codes[i])
                sound[row].append(runner.decode([row], result.codes[i : i + 1])[0])
    return [(np.stack(c), np.concatenate(s)) for c, s in zip(said, sound, strict=True)]


def speech(runner: DiaRunner, text: str, frames: int = FRAMES, **options: Any) -> Utterance:
    prompt = options.pop("prompt", None)
    values = {"sampling": GREEDY, "seed": 0} | options
    seconds = frames / runner.codec.frame_hz
    return Utterance((SpokenLine(text, 0, VOICE, prompt),), max_seconds=seconds, **values)


def recording(seed: int, samples: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.2 * np.sin(np.cumsum(random.uniform(0.01, 0.2, samples)))).astype(np.float32)


def expected_of(
    reference: Any, processor: Any, text: str, frames: int, audio: np.ndarray | None = None, **given: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (T, C) and samples, through DiaProcessor both ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tokenizer about its own defaults
        given_audio = None if audio is None else [audio]
        made = processor(text=[text], audio=given_audio, sampling_rate=44_100, return_tensors="pt")
    values = {"guidance_scale": 3.0, "top_k": 45, "do_sample": False} | given
    said = reference.generate(**made, max_new_tokens=frames + 16, **values)
    prompt = None if audio is None else processor.get_audio_prompt_len(made["decoder_attention_mask"])
    [sound] = processor.batch_decode(said, audio_prompt_len=prompt)
    lead = 1 if prompt is None else int(prompt)
    row = said[0]
    ends = (row[:, 0] == oracle.EOS).nonzero()
    stop = int(ends[0]) if len(ends) else len(row)
    codes = torch.stack([row[lead + d : stop + d, c] for c, d in enumerate(oracle.DELAYS)], dim=1)
    return codes, sound


@pytest.mark.parametrize("text", [TEXT, "Müßig — 早上好 \U0001f600\nnext  line", "[S2]x[S1] [S3]"])
def test_text_and_sound(runner: DiaRunner, reference: Any, processor: Any, text: str) -> None:
    expected, sound = expected_of(reference, processor, text, FRAMES)
    [(codes, heard)] = speak(runner, speech(runner, text))
    assert np.array_equal(codes, expected.numpy())
    assert np.abs(heard - sound.numpy()).max() < 1e-5


@pytest.mark.parametrize("frames", [5, 50])
def test_audio_prompt(runner: DiaRunner, reference: Any, processor: Any, frames: int) -> None:
    audio = recording(frames, frames * 512)
    expected, sound = expected_of(reference, processor, TEXT, FRAMES, audio)
    if frames * 512 / 44_100 < 0.5:  # shorter than we take of a caller
        codes = runner._encoder(torch.from_numpy(audio)).numpy().astype(np.int16)
    else:
        codes = runner.encode(Reference(audio, 44_100, ""))
    assert codes.shape == (9, frames)
    prompt = VoicePrompt("digest", "dac", codes, "")
    [(found, heard)] = speak(runner, speech(runner, TEXT, prompt=prompt))
    assert np.array_equal(found, expected.numpy())
    assert np.abs(heard - sound.numpy()).max() < 1e-5


@pytest.mark.parametrize("seed", [3, 2**40])
def test_seeded(folder: Path, reference: Any, seed: int) -> None:
    """With the reference noise a row's draws are those of `torch.manual_seed(seed)`, whoever else is there."""
    runner = make(folder, reference_noise=True)
    [expected] = oracle.generate(
        reference, [TEXT.replace("[S1]", "\1").replace("[S2]", "\2").encode()], FRAMES, seed=seed
    )
    other = speech(runner, "Somebody else.", seed=9, sampling=Sampling())
    [_, (codes, _)] = speak(runner, other, speech(runner, TEXT, seed=seed, sampling=Sampling()))
    assert np.array_equal(codes, expected.numpy())


def test_a_batch_of_unequal_lengths(runner: DiaRunner, reference: Any) -> None:
    """transformers pads texts and prompts to the longest; here each row has its own length and begins later."""
    texts = [b"\x01 One.", b"\x01 Two is a longer text. \x02 Is it?", b"\x02 Three (sighs)"]
    prompts = [torch.randint(0, 1024, (n, 9), generator=torch.Generator().manual_seed(n)) for n in (4, 25, 12)]
    expected = oracle.generate(reference, texts, FRAMES, prompts=prompts)
    utterances = [
        speech(runner, text.decode(), prompt=VoicePrompt("d", "dac", prompt.T.numpy().astype(np.int16), ""))
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    for (codes, _), wanted in zip(speak(runner, *utterances), expected, strict=True):
        assert np.array_equal(codes, wanted.numpy())


@pytest.mark.parametrize("layout", ["transformers", "nari"])
def test_natural_end(tmp_path: Path, layout: str) -> None:
    """Each of a batch ends where it does alone, in either layout."""
    folder = fabricate_dia(tmp_path / "a", seed=2, eos=True)
    reference = load(folder)
    texts = [b"\x01 One.", b"\x01 Two is longer. \x02 Is it?", b"\x01 Three."]
    expected = oracle.generate(reference, texts, 120)
    if layout == "nari":
        folder = fabricate_dia(tmp_path / "b", seed=2, eos=True, layout_name="nari")
    runner = make(folder)
    found = speak(runner, *(speech(runner, text.decode(), 120) for text in texts))
    lengths = {len(codes) for codes, _ in found}
    assert len([length for length in lengths if length < 120]) > 1
    for (codes, sound), wanted in zip(found, expected, strict=True):
        assert np.array_equal(codes, wanted.numpy())
        assert len(sound) == len(codes) * 512
