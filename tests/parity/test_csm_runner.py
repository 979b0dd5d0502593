"""CSM's runner gives the codes and samples of transformers: tokenizer, chat template, reference audio, generate."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.types import ContextTurn, Reference, Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support import csm_oracle
from tests.support.random_csm import fabricate_csm

pytestmark = pytest.mark.unit

FRAMES = 32
CPU = torch.device("cpu")
VOICE = Voice("v", "v", "cloned")
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"), seed=1)


@pytest.fixture(scope="module")
def runner(folder: Path) -> CsmRunner:
    return load_runner(folder, None, device=CPU, dtype=torch.float32, max_rows=2, guards=None)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = csm_oracle.transformers().CsmForConditionalGeneration
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CsmProcessor, EncodecFeatureExtractor, PreTrainedTokenizerFast

        return CsmProcessor(
            EncodecFeatureExtractor.from_pretrained(folder),
            PreTrainedTokenizerFast.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )


def speak(runner: CsmRunner, utterance: Utterance, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Speak one utterance; return its codes (T, K) and samples (N,)."""
    runner.admit(row, utterance)
    while not runner.prefill(row):
        pass
    codes, samples = [], []
    while True:
        result = runner.step([row])
        assert result.silent is not None
        if result.ended[0] or result.silent[0]:
            samples.append(runner.drain(row))
        else:
            codes.append(result.codes[0])
            samples.append(runner.decode([row], result.codes)[0])
        if result.ended[0]:
            break
    runner.release(row)
    return np.stack(codes), np.concatenate(samples)


def seconds(runner: CsmRunner, frames: int) -> float:
    return frames / runner.codec.frame_hz


def recording(seed: int, samples: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.2 * np.sin(np.cumsum(random.uniform(0.01, 0.2, samples)))).astype(np.float32)


def inputs(processor: Any, turns: list[tuple[int, str, np.ndarray | None]]) -> dict[str, torch.Tensor]:
    """Return the model inputs of CsmProcessor: chat template, audio tokens, padding."""
    conversation = []
    for speaker, text, audio in turns:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if audio is not None:
            content.append({"type": "audio", "path": audio})
        conversation.append({"role": str(speaker), "content": content})
    text = processor.apply_chat_template(conversation, tokenize=False)
    audio = [samples for _, _, samples in turns if samples is not None]
    return dict(processor(text=text, audio=audio or None))


@pytest.mark.parametrize("seed", [3, 2**40])
def test_seeded_codes_are_equal_beside_another_row(folder: Path, reference: Any, processor: Any, seed: int) -> None:
    """With the reference's random numbers, a row draws as after `torch.manual_seed(seed)`, also beside another row."""
    runner = load_runner(folder, None, device=CPU, dtype=torch.float32, max_rows=2, guards=None, reference_noise=True)
    expected = csm_oracle.generate(reference, inputs(processor, [(0, "Any seed.", None)]), FRAMES, seed=seed)
    spoken = Utterance((SpokenLine("Any seed.", 0, VOICE),), Sampling(), seed, seconds(runner, FRAMES))
    runner.admit(0, Utterance((SpokenLine("Another request.", 1, VOICE),), Sampling(), 9, 60.0))
    runner.admit(1, spoken)
    while not (runner.prefill(0) and runner.prefill(1)):
        pass
    codes = [runner.step([0, 1]).codes[1] for _ in range(FRAMES)]
    assert np.array_equal(np.stack(codes), expected.numpy())


@pytest.mark.parametrize("text", ["Hello there, 1234!", "Müßig — 早上好 \U0001f600\nnext  line", "it's"])
def test_codes_are_equal_for_any_text(runner: CsmRunner, reference: Any, processor: Any, text: str) -> None:
    expected = csm_oracle.generate(reference, inputs(processor, [(3, text, None)]), FRAMES)
    spoken = Utterance((SpokenLine(text, 3, VOICE),), GREEDY, 0, seconds(runner, FRAMES))
    assert np.array_equal(speak(runner, spoken)[0], expected.numpy())


def test_samples_are_equal(runner: CsmRunner, reference: Any, processor: Any) -> None:
    spoken = Utterance((SpokenLine("Say it.", 0, VOICE),), Sampling(), 5, seconds(runner, FRAMES))
    codes, samples = speak(runner, spoken)
    with torch.no_grad():
        expected = reference.codec_model.decode(torch.from_numpy(codes.T[None].astype(np.int64))).audio_values[0, 0]
    assert np.abs(samples - expected.numpy()).max() < 1e-5


def test_codes_are_equal_after_a_voice_prompt_and_turns(runner: CsmRunner, reference: Any, processor: Any) -> None:
    """The request has a voice prompt and two turns with audio.

    CsmProcessor encodes them and adds EOS frames in the same way.
    """
    frame = runner.codec.frame_samples
    turns = [
        (0, "This is my voice.", recording(1, 10 * frame)),
        (1, "And this is mine.", recording(2, 7 * frame)),
        (0, "I answered that.", recording(3, 12 * frame)),
    ]
    expected = csm_oracle.generate(reference, inputs(processor, [*turns, (0, "Now the new one.", None)]), FRAMES)
    codes = [runner.encode(Reference(audio, runner.rate_hz, "")) for _, _, audio in turns]
    prompt = VoicePrompt("digest", "mimi", codes[0], turns[0][1])
    spoken = Utterance(
        (SpokenLine("Now the new one.", 0, VOICE, prompt),),
        GREEDY,
        0,
        seconds(runner, FRAMES),
        context=tuple(ContextTurn(s, text, c) for (s, text, _), c in zip(turns[1:], codes[1:], strict=True)),
    )
    assert np.array_equal(speak(runner, spoken)[0], expected.numpy())
    assert np.array_equal(speak(runner, spoken)[0], expected.numpy())  # the second call uses the prefix cache


def test_control_tokens_in_a_text_are_read_as_text(runner: CsmRunner, processor: Any) -> None:
    ids = runner._text(0, "a<|AUDIO|>b<|end_of_text|>c")
    special = {processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|AUDIO|>", "<|end_of_text|>", "<|audio_eos|>")}
    assert not special & set(ids[1:-1])
    assert processor.tokenizer.decode(ids[1:-1]) == "[0]a<|AUDIO|>b<|end_of_text|>c"
