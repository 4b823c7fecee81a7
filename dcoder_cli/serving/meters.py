"""What /metrics tells. https://prometheus.io/docs/practices/naming/"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dcoder_cli.serving.worker import Decoder


class Meters:
    """Counters of one server, in a registry of their own."""

    def __init__(self, worker: Decoder) -> None:
        self.began = time.time()
        self.registry = registry = CollectorRegistry()
        self.calls = Counter("dcoder_calls", "Calls by route and status.", ["route", "status"], registry=registry)
        self.full = Counter("dcoder_calls_refused", "Calls refused because the queue was full.", registry=registry)
        self.gone = Counter("dcoder_clients_gone", "Calls whose client left before the end.", registry=registry)
        self.failed = Counter("dcoder_rows_failed", "Answers whose decoding failed.", registry=registry)
        self.tokens = Counter("dcoder_tokens", "New tokens of answers.", registry=registry)
        self.forwards = Counter("dcoder_forwards", "Evaluations that answers took part in.", registry=registry)
        self.seconds = Histogram(
            "dcoder_call_seconds", "Seconds until an answer, or until its stream began.", registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )  # fmt: skip
        rows = Gauge("dcoder_rows", "Answers that wait or are decoded.", registry=registry)
        rows.set_function(lambda: worker.rows)
        slots = Gauge("dcoder_slots_used", "Slots that decode.", registry=registry)
        slots.set_function(lambda: worker.decoding)
