"""Prometheus metrics: names and values, separate for each server."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import CONTENT_TYPE, Metrics
from app.types import Load

pytestmark = pytest.mark.unit


def scraped(metrics: Metrics) -> dict[str, float]:
    """Return 'name{label=value}' -> number."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_requests_are_counted_by_route_and_status():
    metrics = Metrics()
    metrics.request("/v1/audio/speech", 200)
    metrics.request("/v1/audio/speech", 200)
    metrics.request("/v1/audio/speech", 429)
    values = scraped(metrics)
    assert values["tts_requests_total{route=/v1/audio/speech,status=200}"] == 2
    assert values["tts_requests_total{route=/v1/audio/speech,status=429}"] == 1


def test_spoken_answer_updates_the_metrics():
    metrics = Metrics()
    metrics.first_audio("csm", 0.07, "miss")
    metrics.first_audio("csm", 0.001, "hit")
    metrics.spoken("csm", "mp3", 10.0, 2.5, 1)
    metrics.spoken("csm", "mp3", 5.0, 1.0, 0)
    values = scraped(metrics)
    assert values["tts_first_audio_seconds_count{cache=miss,engine=csm}"] == 1
    assert values["tts_first_audio_seconds_bucket{cache=miss,engine=csm,le=0.05}"] == 0
    assert values["tts_first_audio_seconds_bucket{cache=miss,engine=csm,le=0.1}"] == 1
    assert values["tts_first_audio_seconds_count{cache=hit,engine=csm}"] == 1
    assert values["tts_audio_seconds_total{engine=csm,format=mp3}"] == 15.0
    assert values["tts_real_time_factor_sum{engine=csm}"] == pytest.approx(0.45)
    assert values["tts_underruns_total{engine=csm}"] == 1


def test_answer_without_audio_has_no_real_time_factor():
    metrics = Metrics()
    metrics.spoken("csm", "mp3", 0.0, 2.5, 0)
    assert "tts_real_time_factor_count{engine=csm}" not in scraped(metrics)


def test_cached_cancelled_and_failed_answers_are_counted():
    metrics = Metrics()
    metrics.cache("hit")
    metrics.cancelled()
    metrics.failed("EngineError")
    values = scraped(metrics)
    assert values["tts_cache_total{result=hit}"] == 1
    assert values["tts_cancelled_total"] == 1
    assert values["tts_failed_total{error=EngineError}"] == 1


def test_load_and_cache_are_read_at_each_scrape():
    metrics = Metrics()
    load: Load | None = None
    size_bytes = 5
    metrics.watch_load(lambda: load)
    metrics.watch_cache(lambda: size_bytes)
    names = ("tts_rows_active", "tts_rows_limit", "tts_queue_waiting", "tts_queue_limit", "tts_cache_bytes")
    assert [scraped(metrics)[name] for name in names] == [0, 0, 0, 0, 5]
    load, size_bytes = Load(3, 8, 2, 16), 7
    assert [scraped(metrics)[name] for name in names] == [3, 8, 2, 16, 7]


def test_two_servers_in_one_process_count_separately():
    one, other = Metrics(), Metrics()
    one.cancelled()
    assert scraped(one)["tts_cancelled_total"] == 1
    assert scraped(other)["tts_cancelled_total"] == 0


def test_content_type_matches_the_text_format():
    assert Metrics().text().startswith(b"# HELP")
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
