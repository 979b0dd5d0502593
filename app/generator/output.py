"""From samples at the engine's rate to an answer's bytes: loudness, tempo, rate, length limit, watermark, encoder."""

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

# Longer audio is encoded in a thread. A second of audio takes about 10 ms in mp3, and 2 ms in pcm and wav, which a
# thread would double. The watermark takes 25 ms, so audio with a watermark is always encoded in a thread.
ON_LOOP_S = 0.2
ON_LOOP_PLAIN_S = 1.0


class Output:
    """The audio pipeline of one answer. The watermark comes last, so that nothing changes it. Must be closed."""

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
        """Announce the probable loudness of the utterance that follows."""
        if self._loudness is not None:
            self._loudness.expect(lufs)

    async def push_in_order(self, samples: Samples, order: EncodeOrder, ahead_s: float) -> bytes:
        """Wait for permission, then `push`, in a thread if it takes long. ahead_s: audio that the listener has left."""
        if len(samples) > self._on_loop_samples:
            async with order.thread(ahead_s):
                return await in_thread(self.push, samples)
        await order.on_loop(ahead_s)
        return self.push(samples)

    def push(self, samples: Samples) -> bytes:
        """Add samples; returns the bytes that are complete."""
        return self._encode(self._marker.push(self._length_limit.push(self._stage.push(samples))))

    def flush(self) -> bytes:
        """The last bytes."""
        rest = chain(self._length_limit, self._marker)
        return self._encode(rest.push(self._stage.flush())) + self._encode(rest.flush()) + self._encoder.flush()

    def close(self) -> None:
        self._encoder.close()

    def _encode(self, samples: Samples) -> bytes:
        self._samples += len(samples)
        return self._encoder.encode(samples)


async def open_output(job: SpeechJob) -> Output:
    """The pipeline for one job."""
    request = job.request
    marker: Stage | None = None
    if job.marked:
        perth = await in_thread(watermark.load)  # reads a file on the first call
        marker = watermark.StreamMarker(request.sample_rate_hz, perth)
    return Output(open_encoder(request.format, request.sample_rate_hz), job.info.rate_hz, request, marker)
