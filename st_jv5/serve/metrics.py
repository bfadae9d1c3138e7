"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from st_jv5.serve.batcher import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def count(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"st_jv5_{name}", about, labels, registry=self.registry)

        def spread(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            found = Histogram(
                f"st_jv5_{name}", about, labels, buckets=buckets, registry=self.registry
            )
            return found

        self.requests = count("requests", "requests by path and status", "path", "status")
        self.seconds = spread("request_seconds", "of a request, by path", SECONDS, "path")
        self.texts = count("texts", "texts taken, by task", "task")
        self.tokens = count("tokens", "tokens taken, by task", "task")
        self.cut = count("texts_cut", "texts that were cut, being longer than the model takes")
        self.batch_texts = spread("batch_texts", "texts of a batch", SIZES)
        self.batch_tokens = spread("batch_tokens", "tokens of a batch", SIZES)
        self.batch_seconds = spread("batch_seconds", "the model takes for a batch", SECONDS)

    def watch(self, batcher: Batcher) -> None:
        """Report how many texts and tokens wait for the model."""
        for name in ("waiting_texts", "waiting_tokens"):
            gauge = Gauge(f"st_jv5_{name}", "before the model", registry=self.registry)
            gauge.set_function(lambda name=name: getattr(batcher, name))  # type: ignore[misc]

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """One more batch."""
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)
