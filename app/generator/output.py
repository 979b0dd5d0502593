"""The audio pipeline of an answer: loudness, tempo, sample rate, length limit, watermark and audio format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.audio import watermark
from app.audio.encoders import Encoder, open_encoder
from app.audio.resample import StreamResampler
from app.audio.shape import LengthLimit
from app.audio.stages import Stage, chain
from app.audio.stretch import StreamStretcher
from app.audio.threads import in_thread
from app.voices.enhancement import Loudness

if TYPE_CHECKING:
    from app.generator.job import SpeechJob
    from app.generator.pacing import EncodeOrder
    from app.types import Samples, SpeechRequest

# Audio up to this length is encoded on the event loop, and longer audio in a thread. One second of audio takes about
# 10 ms for mp3, and 2 ms for pcm and wav. A thread adds about 2 ms. The watermark takes 25 ms, so audio with a
# watermark is always encoded in a thread.
ON_LOOP_S = 0.2
ON_LOOP_PLAIN_S = 1.0  # for pcm and wav


class Output:
    """Converts samples at the engine's sample rate to the bytes of an answer. The caller must call `close`.

    The watermark is the last step before the encoder, so that no other step changes it.
    """

    def __init__(self, encoder: Encoder, rate_hz: int, request: SpeechRequest, marker: Stage | None) -> None:
        """marker: adds the watermark; None = no watermark."""
        self._encoder = encoder
        self._rate_hz = rate_hz
        self._out_hz = request.sample_rate_hz
        self._loudness = Loudness(rate_hz) if request.enhance else None
        self._stage: Stage = chain(
            self._loudness or chain(),
            StreamStretcher(rate_hz, request.speed),
            StreamResampler(rate_hz, request.sample_rate_hz),
        )
        self._length_limit = LengthLimit(
            request.sample_rate_hz, None if request.max_audio_ms is None else request.max_audio_ms / 1000
        )
        self._marker: Stage = marker or chain()
        on_loop_s = 0.0 if marker else ON_LOOP_PLAIN_S if request.format in ("pcm", "wav") else ON_LOOP_S
        self._on_loop_samples = on_loop_s * rate_hz
        self._samples = 0

    @property
    def audio_s(self) -> float:
        """Seconds of audio encoded so far."""
        return self._samples / self._out_hz

    @property
    def full(self) -> bool:
        """Whether the length limit is reached."""
        return self._length_limit.reached

    def expect(self, lufs: float) -> None:
        """Set the expected loudness of the next utterance, in LUFS."""
        if self._loudness is not None:
            self._loudness.expect(lufs)

    async def push_in_order(self, samples: Samples, order: EncodeOrder, ahead_s: float) -> bytes:
        """Wait until `order` allows this answer to encode, then call `push`. Long audio is encoded in a thread.

        ahead_s: seconds of audio that the listener has received and not played yet.
        """
        if len(samples) > self._on_loop_samples:
            async with order.thread(ahead_s):
                return await in_thread(self.push, samples)
        await order.on_loop(ahead_s)
        return self.push(samples)

    def push(self, samples: Samples) -> bytes:
        """Process samples and return the encoded bytes that are complete."""
        return self._encode(self._marker.push(self._length_limit.push(self._stage.push(samples))))

    def flush(self) -> bytes:
        """End the answer and return its last encoded bytes."""
        rest = chain(self._length_limit, self._marker)
        return self._encode(rest.push(self._stage.flush())) + self._encode(rest.flush()) + self._encoder.flush()

    def close(self) -> None:
        """Free the encoder."""
        self._encoder.close()

    def _encode(self, samples: Samples) -> bytes:
        """Encode samples and count them."""
        self._samples += len(samples)
        return self._encoder.encode(samples)


async def open_output(job: SpeechJob) -> Output:
    """Create the audio pipeline of a job."""
    request = job.request
    marker: Stage | None = None
    if job.marked:
        perth = await in_thread(watermark.load)  # the first call reads a file
        marker = watermark.StreamMarker(request.sample_rate_hz, perth)
    return Output(open_encoder(request.format, request.sample_rate_hz), job.info.rate_hz, request, marker)
