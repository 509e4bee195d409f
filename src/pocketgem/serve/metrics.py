"""Counters for Prometheus: how many, how long, how much. Names of models and routes, and nothing that anybody said."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from pocketgem.answers import Stats
from pocketgem.senses import Senses
from pocketgem.serve.call import Call

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
NEXT_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
REQUEST = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 60, 120, 300, 600, 1800)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"  # paths that are no route: an attacker must not make names


class Metrics:
    """A registry of its own, so that several servers fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter(
            "pocketgem_requests", "Answered HTTP requests", ["route", "method", "status"], registry=here
        )
        self.seconds = Histogram(
            "pocketgem_request_seconds", "Seconds from a request to the end of its answer", ["route"],
            buckets=REQUEST, registry=here,
        )  # fmt: skip
        self.prompt = Counter("pocketgem_prompt_tokens", "Prompt tokens", ["model"], registry=here)
        self.reused = Counter(
            "pocketgem_prompt_tokens_reused", "Of these, found in the cache", ["model"], registry=here
        )
        self.made = Counter("pocketgem_completion_tokens", "Tokens made", ["model"], registry=here)
        self.ended = Counter("pocketgem_answers", "Answers by why they ended", ["model", "reason"], registry=here)
        self.first = Histogram(
            "pocketgem_first_token_seconds", "From submission to the first token", ["model"],
            buckets=FIRST_TOKEN, registry=here,
        )  # fmt: skip
        self.next = Histogram(
            "pocketgem_next_token_seconds", "Between tokens, the mean of an answer", ["model"],
            buckets=NEXT_TOKEN, registry=here,
        )  # fmt: skip
        self.running = Gauge("pocketgem_running", "Requests that the engine is working on", ["model"], registry=here)
        self.waiting = Gauge("pocketgem_waiting", "Requests that wait for the engine", ["model"], registry=here)
        self.cache = Gauge(
            "pocketgem_cache_bytes", "Keys and values of running requests, and kept", ["model", "of"], registry=here
        )
        self.media = Counter(
            "pocketgem_media_tokens", "Prompt tokens of images, sounds and videos", ["model", "kind"], registry=here
        )
        self.seen = Gauge(
            "pocketgem_media_encoded", "Media by whether their rows were still there", ["model", "cache"], registry=here
        )
        self.media_bytes = Gauge("pocketgem_media_cache_bytes", "Rows of media that are kept", ["model"], registry=here)
        self.loaded = Gauge("pocketgem_model_loaded", "1 while a model is in memory", ["model"], registry=here)

    def request(self, call: Call, scope: Scope) -> None:
        """A request that is over."""
        route = call.route or OTHER
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else OTHER
        self.requests.labels(route, method, str(call.status)).inc()
        self.seconds.labels(route).observe(time.monotonic() - call.began)

    def answer(self, model: str, stats: Stats, reason: str) -> None:
        """An answer that ended."""
        self.prompt.labels(model).inc(stats.prompt_tokens)
        self.reused.labels(model).inc(stats.reused_tokens)
        self.made.labels(model).inc(stats.completion_tokens)
        self.ended.labels(model, reason).inc()
        for kind, count in stats.media.items():
            if count:
                self.media.labels(model, kind).inc(count)
        if stats.completion_tokens:
            self.first.labels(model).observe(stats.prefill_seconds)
        if stats.completion_tokens > 1:
            self.next.labels(model).observe(stats.decode_seconds / (stats.completion_tokens - 1))

    def senses(self, model: str, senses: Senses) -> None:
        """What a model's senses did so far."""
        self.seen.labels(model, "hit").set(senses.shelf.hits)
        self.seen.labels(model, "miss").set(senses.shelf.misses)
        self.media_bytes.labels(model).set(senses.shelf.nbytes)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
