"""What the server counts, in Prometheus terms, behind a few functions. One Metrics per app, no global registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from app.types import DeviceState, Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_AUDIO_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)
_REAL_TIME_FACTOR_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 5, 10)


class Metrics:
    """Counters and histograms of one server. Thread-safe, as prometheus_client is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.keys_registry = CollectorRegistry(auto_describe=True)  # apart: who the callers are is not for everybody
        self._key_requests = Counter(
            "tts_key_requests", "Requests by the name of their key", ["key", "status"], registry=self.keys_registry
        )
        self._key_refused = Counter(
            "tts_key_refused",
            "Requests that a key's scopes or limits did not allow: scope, rate, concurrency",
            ["key", "reason"],
            registry=self.keys_registry,
        )
        self._key_tokens = Counter(
            "tts_key_tokens",
            "Tokens of complete answers by the name of their key, as `usage` counts them",
            ["key", "kind"],
            registry=self.keys_registry,
        )
        self._requests = Counter(
            "tts_requests", "HTTP requests by route and status", ["route", "status"], registry=self.registry
        )
        self._first_audio = Histogram(
            "tts_first_audio_seconds",
            "From the request to the first bytes of its answer",
            ["engine", "cache"],
            buckets=_FIRST_AUDIO_BUCKETS_S,
            registry=self.registry,
        )
        self._real_time_factor = Histogram(
            "tts_real_time_factor",
            "Seconds of engine time per second of audio, per answer; below 1 is faster than speech",
            ["engine"],
            buckets=_REAL_TIME_FACTOR_BUCKETS,
            registry=self.registry,
        )
        self._audio_seconds = Counter(
            "tts_audio_seconds", "Seconds of audio made", ["engine", "format"], registry=self.registry
        )
        self._underruns = Counter(
            "tts_underruns", "Times a listener would have run out of sound", ["engine"], registry=self.registry
        )
        self._cache = Counter("tts_cache", "Answers by how the cache served them", ["result"], registry=self.registry)
        self._guard = Counter(
            "tts_guard", "Times the output guard stepped in, by rule", ["rule"], registry=self.registry
        )
        self._cancelled = Counter("tts_cancelled", "Answers whose reader left", registry=self.registry)
        self._failed = Counter(
            "tts_failed", "Answers that broke after their first bytes", ["error"], registry=self.registry
        )
        self._cache_bytes = Gauge("tts_cache_bytes", "Bytes in the answer cache", registry=self.registry)

    def request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def key_request(self, key: str, status: int) -> None:
        """key: a key's name, of which there are as many as keys were made; never what a caller sent."""
        self._key_requests.labels(key, str(status)).inc()

    def key_refused(self, key: str, reason: str) -> None:
        self._key_refused.labels(key, reason).inc()

    def key_tokens(self, key: str, given: int, spoken: int) -> None:
        self._key_tokens.labels(key, "input").inc(given)
        self._key_tokens.labels(key, "output").inc(spoken)

    def first_audio(self, engine: str, seconds: float, *, hit: bool) -> None:
        self._first_audio.labels(engine, "hit" if hit else "miss").observe(seconds)

    def spoken(self, engine: str, audio_format: str, audio_s: float, engine_s: float, underruns: int) -> None:
        """An answer is complete: its audio, the time spent waiting for the engine, and how often it came late."""
        self._audio_seconds.labels(engine, audio_format).inc(audio_s)
        self._underruns.labels(engine).inc(underruns)
        if audio_s > 0:
            self._real_time_factor.labels(engine).observe(engine_s / audio_s)

    def cache(self, result: str) -> None:
        self._cache.labels(result).inc()

    def guard(self, rule: str) -> None:
        self._guard.labels(rule).inc()

    def cancelled(self) -> None:
        self._cancelled.inc()

    def failed(self, error: str) -> None:
        self._failed.labels(error).inc()

    def watch_cache(self, size_bytes: Callable[[], int]) -> None:
        self._cache_bytes.set_function(size_bytes)

    def watch_load(self, load: Callable[[], Load | None]) -> None:
        """Rows and queue are read from the engine at each scrape."""
        self.registry.register(_LoadCollector(load))

    def watch_devices(self, devices: Callable[[], Iterable[DeviceState]]) -> None:
        """Which devices are in use is read at each scrape."""
        self.registry.register(_DeviceCollector(devices))

    def text(self, *, keys: bool = False) -> bytes:
        """keys: with what is counted by key."""
        return generate_latest(self.registry) + (generate_latest(self.keys_registry) if keys else b"")


class _LoadCollector(Collector):
    def __init__(self, load: Callable[[], Load | None]) -> None:
        self._load = load

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - typed only there

        load = self._load()
        for name, text, value in (
            ("tts_rows_active", "Utterances being spoken", load.active_rows if load else 0),
            ("tts_rows_limit", "Utterances that can be spoken at once", load.max_rows if load else 0),
            ("tts_queue_waiting", "Utterances waiting for a row", load.queued if load else 0),
            ("tts_queue_limit", "Utterances that may wait", load.max_queue if load else 0),
        ):
            family = GaugeMetricFamily(name, text)
            family.add_metric([], value)
            yield family


class _DeviceCollector(Collector):
    def __init__(self, devices: Callable[[], Iterable[DeviceState]]) -> None:
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - typed only there

        up = GaugeMetricFamily("tts_device_up", "1 while speech is made on the device", labels=["device"])
        rows = GaugeMetricFamily("tts_device_rows_active", "Utterances being spoken there", labels=["device"])
        for index, each in enumerate(self._devices()):
            name = f"{index}:{each.device}"  # one device may stand in TTS_DEVICES twice
            up.add_metric([name], float(not each.failure))
            rows.add_metric([name], each.load.active_rows)
        yield from (up, rows)
