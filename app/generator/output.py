"""The audio pipeline of an answer, in two halves.

`Finisher` belongs to a generation. It sets the loudness and the tempo, applies the length limit and adds the watermark.
Its result is stored and shared as 16-bit samples at the engine's sample rate. `AnswerEncoder` belongs to one answer. It
converts these samples to the sample rate and the audio format of the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.audio import pcm, watermark
from app.audio.encoders import open_encoder
from app.audio.resample import StreamResampler, resampled_length
from app.audio.shape import LengthLimit
from app.audio.stages import Stage, chain
from app.audio.stretch import StreamStretcher
from app.audio.threads import in_thread
from app.voices.enhancement import Loudness

if TYPE_CHECKING:
    from app.generator.job import SpeechJob
    from app.generator.pacing import EncodeOrder
    from app.types import Samples, SpeechRequest

# Audio up to this length is processed on the event loop, and longer audio in a thread, because a thread adds about
# 2 ms. One second of audio takes about 10 ms for mp3, and 2 ms for pcm, wav and the loudness. The watermark takes 25
# ms, so it is always added in a thread.
ON_LOOP_S = 0.2
ON_LOOP_PLAIN_S = 1.0  # used instead of ON_LOOP_S for pcm, wav and the loudness, which take less time


class Finisher:
    """Converts the engine's samples to the 16-bit samples of an answer, at the same sample rate.

    The watermark is added last. After this step, only the change of the sample rate and the encoder change the audio.
    """

    def __init__(self, rate_hz: int, request: SpeechRequest, marker: Stage | None) -> None:
        """marker: adds the watermark; None = no watermark."""
        self._rate_hz = rate_hz
        self._loudness = Loudness(rate_hz) if request.enhance else None
        self._stage: Stage = chain(self._loudness or chain(), StreamStretcher(rate_hz, request.speed))
        self._length_limit = LengthLimit(rate_hz, None if request.max_audio_ms is None else request.max_audio_ms / 1000)
        self._marker: Stage = marker or chain()
        self._on_loop_samples = (0.0 if marker else ON_LOOP_PLAIN_S) * rate_hz
        self._samples = 0

    @property
    def audio_s(self) -> float:
        """Seconds of audio finished so far."""
        return self._samples / self._rate_hz

    @property
    def full(self) -> bool:
        """Whether the length limit is reached."""
        return self._length_limit.reached

    def expect(self, lufs: float) -> None:
        """Set the expected loudness of the next utterance, in LUFS."""
        if self._loudness is not None:
            self._loudness.expect(lufs)

    async def push_in_order(self, samples: Samples, order: EncodeOrder, ahead_s: float) -> bytes:
        """Call `push`. For long audio, wait until `order` allows it, and call `push` in a thread.

        ahead_s: seconds of audio that the listener has received and not played yet.
        """
        if len(samples) > self._on_loop_samples:
            async with order.thread(ahead_s):
                return await in_thread(self.push, samples)
        return self.push(samples)

    def push(self, samples: Samples) -> bytes:
        """Process samples and return the 16-bit samples that are complete."""
        return self._to_bytes(self._marker.push(self._length_limit.push(self._stage.push(samples))))

    def flush(self) -> bytes:
        """End the audio and return its last 16-bit samples."""
        rest = chain(self._length_limit, self._marker)
        return self._to_bytes(rest.push(self._stage.flush())) + self._to_bytes(rest.flush())

    def _to_bytes(self, samples: Samples) -> bytes:
        self._samples += len(samples)
        return pcm.to_bytes(samples) if len(samples) else b""


async def open_finisher(job: SpeechJob) -> Finisher:
    """Create the first half of the pipeline for a generation."""
    marker: Stage | None = None
    if job.marked:
        perth = await in_thread(watermark.load)  # in a thread, because the first call reads a file
        marker = watermark.StreamMarker(job.info.rate_hz, perth)
    return Finisher(job.info.rate_hz, job.request, marker)


class AnswerEncoder:
    """Encodes the 16-bit samples of a job to the format and the sample rate of its request. The caller must call
    `close`.

    rate_hz: the sample rate of the samples. samples: how many samples the answer has, for the header of the file; None
    = not known yet.
    """

    def __init__(self, job: SpeechJob, rate_hz: int, samples: int | None = None) -> None:
        request = job.request
        self._rate_hz = rate_hz
        self._resampler = StreamResampler(rate_hz, request.sample_rate_hz)
        total = None if samples is None else resampled_length(samples, rate_hz, request.sample_rate_hz)
        self._encoder = open_encoder(request.format, request.sample_rate_hz, total, comment=job.comment)
        plain = request.format in ("pcm", "wav")
        self.on_loop_samples = round((ON_LOOP_PLAIN_S if plain else ON_LOOP_S) * rate_hz)
        self._samples = 0

    @property
    def audio_s(self) -> float:
        """Seconds of audio that were pushed so far."""
        return self._samples / self._rate_hz

    async def push_in_order(self, data: bytes, order: EncodeOrder, ahead_s: float) -> bytes:
        """Wait until `order` allows this answer to encode, then call `push`. Long audio is encoded in a thread.

        ahead_s: seconds of audio that the listener has received and not played yet.
        """
        if len(data) > 2 * self.on_loop_samples:
            async with order.thread(ahead_s):
                return await in_thread(self.push, data)
        await order.on_loop(ahead_s)
        return self.push(data)

    def push(self, data: bytes) -> bytes:
        """Encode 16-bit samples and return the bytes that are complete."""
        samples = pcm.from_bytes(data)
        self._samples += len(samples)
        return self._encoder.encode(self._resampler.push(samples))

    def flush(self) -> bytes:
        """End the answer and return its last encoded bytes."""
        return self._encoder.encode(self._resampler.flush()) + self._encoder.flush()

    def close(self) -> None:
        """Free the encoder."""
        self._encoder.close()
