"""Counters of several processes as one page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merged(own: bytes, others: Mapping[str, bytes]) -> bytes:
    """``own`` as it is, and what the others count under their names: a label ``replica``."""
    found: dict[str, Metric] = {}
    _add(found, own, {})
    for name, text in others.items():
        _add(found, text, {"replica": name})
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(found.values()))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def _add(found: dict[str, Metric], text: bytes, labels: dict[str, str]) -> None:
    for family in text_string_to_metric_families(text.decode()):
        metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            metric.add_sample(sample.name, {**sample.labels, **labels}, sample.value)
