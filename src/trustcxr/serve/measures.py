"""What the server counts of itself, as Prometheus reads it; nothing of any film or person is among it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Measures:
    """Requests by route and status, seconds by route, how many are in the house, how many workers were replaced."""

    def __init__(self) -> None:
        times = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)
        self.registry = own = CollectorRegistry()
        self.requests = Counter("trustcxr_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "trustcxr_seconds", "Seconds to answer, by route.", ["route"], buckets=times, registry=own
        )
        self.inside = Gauge("trustcxr_inside", "Requests that are answered or wait.", registry=own)
        self.workers = Gauge("trustcxr_workers", "Workers that can answer.", registry=own)
        self.restarts = Gauge("trustcxr_worker_restarts", "Workers that were replaced.", registry=own)

    def done(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
