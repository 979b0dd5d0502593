"""The Prometheus metrics of the server. Each app has a separate Metrics object; there is no global registry."""

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
    """Counts events and measures durations. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        # The metrics of API keys have a separate registry, because only callers with the scope `admin` may read these
        # metrics.
        self.keys_registry = CollectorRegistry(auto_describe=True)
        self._key_requests = Counter(
            "tts_key_requests", "Requests by the name of their API key", ["key", "status"], registry=self.keys_registry
        )
        self._key_refused = Counter(
            "tts_key_refused",
            "Requests refused because of the API key's scopes or limits, by reason: scope, rate, concurrency",
            ["key", "reason"],
            registry=self.keys_registry,
        )
        self._key_tokens = Counter(
            "tts_key_tokens",
            "Tokens of complete answers by the name of their API key, counted as in `usage`",
            ["key", "kind"],
            registry=self.keys_registry,
        )
        self._key_characters = Counter(
            "tts_key_characters",
            "Characters of the texts of answers by the name of their API key, as in /v1/usage",
            ["key", "model"],
            registry=self.keys_registry,
        )
        self._key_audio_seconds = Counter(
            "tts_key_audio_seconds",
            "Seconds of audio sent by the name of their API key, as in /v1/usage",
            ["key", "model"],
            registry=self.keys_registry,
        )
        self._sent_characters = Counter(
            "tts_sent_characters", "Characters of the texts of answers", ["model"], registry=self.registry
        )
        self._sent_audio_seconds = Counter(
            "tts_sent_audio_seconds",
            "Seconds of audio sent, also from the cache",
            ["model"],
            registry=self.registry,
        )
        self._requests = Counter(
            "tts_requests", "HTTP requests by route and status", ["route", "status"], registry=self.registry
        )
        self._first_audio = Histogram(
            "tts_first_audio_seconds",
            "Seconds from the request to the first bytes of its answer (time to first audio)",
            ["engine", "cache"],
            buckets=_FIRST_AUDIO_BUCKETS_S,
            registry=self.registry,
        )
        self._real_time_factor = Histogram(
            "tts_real_time_factor",
            "Seconds of engine time per second of audio, per answer; below 1 is faster than real time",
            ["engine"],
            buckets=_REAL_TIME_FACTOR_BUCKETS,
            registry=self.registry,
        )
        self._audio_seconds = Counter(
            "tts_audio_seconds", "Seconds of audio generated", ["engine", "format"], registry=self.registry
        )
        self._underruns = Counter(
            "tts_underruns",
            "Times that the playback of an answer would have run out of audio",
            ["engine"],
            registry=self.registry,
        )
        self._cache = Counter(
            "tts_cache", "Answers by cache result: hit, miss, shared, off", ["result"], registry=self.registry
        )
        self._guard = Counter("tts_guard", "Corrections by the output guard, by rule", ["rule"], registry=self.registry)
        self._verified = Counter(
            "tts_verified",
            "Utterances by the result of the check of generated speech: ok, retried, uncertain, unchecked",
            ["result"],
            registry=self.registry,
        )
        self._cancelled = Counter(
            "tts_cancelled", "Answers whose client disconnected before the end", registry=self.registry
        )
        self._failed = Counter(
            "tts_failed", "Answers that failed after their first bytes, by error", ["error"], registry=self.registry
        )
        self._cache_bytes = Gauge("tts_cache_bytes", "Bytes in the answer cache", registry=self.registry)

    def request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def key_request(self, key: str, status: int) -> None:
        """Count a request of an API key. `key` must be the name of an existing key, never a text from the request."""
        self._key_requests.labels(key, str(status)).inc()

    def key_refused(self, key: str, reason: str) -> None:
        self._key_refused.labels(key, reason).inc()

    def key_tokens(self, key: str, input_tokens: int, output_tokens: int) -> None:
        self._key_tokens.labels(key, "input").inc(input_tokens)
        self._key_tokens.labels(key, "output").inc(output_tokens)

    def used(self, key: str, model: str, characters: int, seconds: float) -> None:
        """Count an answer that was sent. key: the name of an existing key; "" = the request had no key."""
        self._sent_characters.labels(model).inc(characters)
        self._sent_audio_seconds.labels(model).inc(seconds)
        if key:
            self._key_characters.labels(key, model).inc(characters)
            self._key_audio_seconds.labels(key, model).inc(seconds)

    def first_audio(self, engine: str, seconds: float, cache: str) -> None:
        """Record the time to first audio. cache: hit, miss, shared or off; `off` is recorded as a miss."""
        self._first_audio.labels(engine, "miss" if cache == "off" else cache).observe(seconds)

    def spoken(self, engine: str, audio_format: str, audio_s: float, engine_s: float | None, underruns: int) -> None:
        """Count a complete answer.

        engine_s: how many seconds the answer waited for the engine; None = unknown. underruns: how often the listener
        ran out of audio.
        """
        self._audio_seconds.labels(engine, audio_format).inc(audio_s)
        self._underruns.labels(engine).inc(underruns)
        if audio_s > 0 and engine_s is not None:
            self._real_time_factor.labels(engine).observe(engine_s / audio_s)

    def cache(self, result: str) -> None:
        self._cache.labels(result).inc()

    def guard(self, rule: str) -> None:
        self._guard.labels(rule).inc()

    def verified(self, result: str) -> None:
        self._verified.labels(result).inc()

    def cancelled(self) -> None:
        self._cancelled.inc()

    def failed(self, error: str) -> None:
        self._failed.labels(error).inc()

    def watch_cache(self, size_bytes: Callable[[], int]) -> None:
        self._cache_bytes.set_function(size_bytes)

    def watch_load(self, load: Callable[[], Load | None]) -> None:
        """Add metrics of the rows and the queue. load: called at each scrape; it returns None if no engine runs."""
        self.registry.register(_LoadCollector(load))

    def watch_devices(self, devices: Callable[[], Iterable[DeviceState]]) -> None:
        """Add metrics of each device. devices: called at each scrape; it returns the states of the devices."""
        self.registry.register(_DeviceCollector(devices))

    def watch_models(self, models: Callable[[], Iterable[tuple[str, bool, int]]]) -> None:
        """Add metrics of each model. models: called at each scrape; it returns the id of each model, whether it is
        loaded, and its bytes in memory (0 = unknown).
        """
        self.registry.register(_ModelCollector(models))

    def text(self, *, keys: bool = False) -> bytes:
        """Return all metrics in the Prometheus text format. keys: True = include the metrics of the API keys."""
        return generate_latest(self.registry) + (generate_latest(self.keys_registry) if keys else b"")


class _LoadCollector(Collector):
    def __init__(self, load: Callable[[], Load | None]) -> None:
        self._load = load

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - only this module has types for the class

        load = self._load()
        for name, text, value in (
            ("tts_rows_active", "Utterances being spoken", load.active_rows if load else 0),
            ("tts_rows_limit", "Utterances that can be spoken at the same time", load.max_rows if load else 0),
            ("tts_queue_waiting", "Utterances that wait for a row", load.queued if load else 0),
            ("tts_queue_limit", "Utterances that may wait at the same time", load.max_queue if load else 0),
        ):
            family = GaugeMetricFamily(name, text)
            family.add_metric([], value)
            yield family


class _DeviceCollector(Collector):
    def __init__(self, devices: Callable[[], Iterable[DeviceState]]) -> None:
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - only this module has types for the class

        up = GaugeMetricFamily(
            "tts_device_up", "1 while the device is in use, 0 after it has failed", labels=["device"]
        )
        rows = GaugeMetricFamily("tts_device_rows_active", "Utterances being spoken on the device", labels=["device"])
        for index, each in enumerate(self._devices()):
            name = f"{index}:{each.device}"  # TTS_DEVICES may list a device twice, and names must differ
            up.add_metric([name], float(not each.failure))
            rows.add_metric([name], each.load.active_rows)
        yield from (up, rows)


class _ModelCollector(Collector):
    def __init__(self, models: Callable[[], Iterable[tuple[str, bool, int]]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - only this module has types for the class

        loaded = GaugeMetricFamily("tts_model_loaded", "1 while the model is loaded", labels=["model"])
        size = GaugeMetricFamily("tts_model_bytes", "Memory that the loaded model takes", labels=["model"])
        for model, is_loaded, taken_bytes in self._models():
            loaded.add_metric([model], float(is_loaded))
            size.add_metric([model], taken_bytes)
        yield from (loaded, size)
