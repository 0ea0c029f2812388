"""What the reward service tells Prometheus through Ray: requests and scores by the API replicas, batches by the engines.

Ray exports the names below with `ray_` before them, and `ray.serve.metrics` adds the labels `deployment`, `replica` and
`application`. Ray rebuilds histograms from the middles of their buckets: counts and quantiles hold, sums are approximate. It
also takes a metric's boundaries from the first process of a node that names it, so they must not depend on the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.scale import MAX_K
from wildreward_ray.core.service import ModelCard, RequestObserver, RequestRecord, ServiceError
from wildreward_ray.reward.drift import ScoreDrift
from wildreward_ray.stages.serve_access_log import AccessLog, Observers
from wildreward_ray.stages.serve_recorder import Make, Metric, Recorder, Ticker, ray_metric

FLUSH_S = 1.0
# A version that scores nothing any more, and is not the latest, is forgotten after so long.
FORGET_S = 60.0

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SCORES = tuple(1 + i / 4 for i in range(4 * (MAX_K - 1) + 1))
_POWERS = tuple(float(2**i) for i in range(18))

REQUESTS = Metric(
    "Counter",
    "wildreward_requests_total",
    "requests by protocol (other: paths that score nothing), HTTP status and error code (empty: none)",
    ("protocol", "status", "code"),
)
REQUEST_SECONDS = Metric(
    "Histogram", "wildreward_request_seconds", "seconds from a request's arrival to its reply", ("protocol",), _SECONDS
)
IN_FLIGHT = Metric("Gauge", "wildreward_requests_in_flight", "requests without a reply yet")
ITEMS = Metric("Counter", "wildreward_items_total", "inputs that were given a reward")
TOKENS = Metric("Counter", "wildreward_tokens_total", "tokens of inputs that were given a reward")
SCORE = Metric("Histogram", "wildreward_score", "scores by model version", ("version",), _SCORES)
SCORE_MEAN = Metric("Gauge", "wildreward_score_mean", "mean of the last scores of a model version", ("version",))
SCORE_PSI = Metric(
    "Gauge",
    "wildreward_score_psi",
    "population stability index of the last scores of a model version against its first",
    ("version",),
)
SCORE_SHIFT = Metric(
    "Gauge",
    "wildreward_score_shift",
    "mean of the last scores of a model version minus that of its first, in standard deviations of the first",
    ("version",),
)

BATCH_ITEMS = Metric("Histogram", "wildreward_batch_items", "inputs of a batch", (), _POWERS[:12])
BATCH_TOKENS = Metric("Histogram", "wildreward_batch_tokens", "tokens of a batch", (), _POWERS[4:])
BATCH_SECONDS = Metric("Histogram", "wildreward_batch_seconds", "seconds that a batch took", (), _SECONDS)
WAITING = Metric("Gauge", "wildreward_engine_waiting", "inputs in the engine without a reward yet")
PROMPT_TOKENS = Metric("Counter", "wildreward_prompt_tokens_total", "tokens of all inputs the engine was given")
CACHED_TOKENS = Metric("Counter", "wildreward_cached_tokens_total", "how many of them its prefix cache had already")
LOST = Metric("Counter", "wildreward_lost_rewards_total", "requests that the engine had no rewards for", ("reason",))


@dataclass
class _Version:
    """Scores of one model version."""

    drift: ScoreDrift
    seen: float


class ServiceMetrics:
    """The `RequestObserver` of an API replica.

    Args:
        card: what is served now; tells the number of levels of a version that begins to score.
        window: scores that drift is measured over, asked when a version begins to score.
        make, every_s: for tests.
    """

    def __init__(
        self,
        card: Callable[[], ModelCard],
        window: Callable[[], int],
        make: Make = ray_metric,
        every_s: float = FLUSH_S,
    ) -> None:
        self._card, self._window = card, window
        self._recorder = Recorder(make)
        self._in_flight = 0
        self._lock = threading.Lock()
        self._scores: dict[str, list[float]] = {}
        self._versions: dict[str, _Version] = {}
        self._ticker = Ticker(self.flush, every_s)

    def began(self) -> None:
        """See `RequestObserver`."""
        with self._lock:
            self._in_flight += 1

    def ended(self, record: RequestRecord) -> None:
        """See `RequestObserver`. Paths that clients make up don't become labels: these have no protocol."""
        protocol = record.protocol or "other"
        self._recorder.add(REQUESTS, 1, (protocol, str(record.status), record.code))
        self._recorder.observe(REQUEST_SECONDS, (record.seconds,), (protocol,))
        if record.scores:
            self._recorder.add(ITEMS, len(record.scores))
            self._recorder.add(TOKENS, record.tokens)
            self._recorder.observe(SCORE, record.scores, (record.version,))
        with self._lock:
            self._in_flight -= 1
            if record.scores:
                self._scores.setdefault(record.version, []).extend(record.scores)

    def flush(self) -> None:
        """Hand everything to Ray; a thread calls this."""
        with self._lock:
            scores, self._scores = self._scores, {}
            in_flight = self._in_flight
        self._recorder.flush()
        self._recorder.set(IN_FLIGHT, in_flight)
        for version, values in scores.items():
            self._measure(version, values)
        self._forget()
        for version, measured in self._versions.items():
            drift = measured.drift
            for metric, value in (
                (SCORE_MEAN, drift.mean()),
                (SCORE_PSI, drift.psi()),
                (SCORE_SHIFT, drift.mean_shift()),
            ):
                if value is not None:
                    self._recorder.set(metric, value, (version,))

    def close(self) -> None:
        """Hand over what is left and end the thread."""
        self._ticker.close()

    def _measure(self, version: str, scores: Sequence[float]) -> None:
        if version not in self._versions:
            try:
                card = self._card()
            except ServiceError:
                return
            # While a new model takes over, the last replies of one that this replica never measured may still come.
            if card.version != version:
                return
            self._versions[version] = _Version(ScoreDrift(card.levels, self._window()), 0.0)
        measured = self._versions[version]
        measured.seen = time.monotonic()
        measured.drift.extend(scores)

    def _forget(self) -> None:
        """Drop versions that have been replaced, whose gauges would stand still for ever."""
        latest = max((measured.seen for measured in self._versions.values()), default=0.0)
        too_old = min(latest, time.monotonic() - FORGET_S)
        self._versions = {name: measured for name, measured in self._versions.items() if measured.seen >= too_old}


class EngineMetrics:
    """Metrics of an engine replica.

    Args:
        make, every_s: for tests.
    """

    def __init__(self, make: Make = ray_metric, every_s: float = FLUSH_S) -> None:
        self._recorder = Recorder(make)
        self._waiting = 0
        self._ticker = Ticker(self.flush, every_s)

    def batch(self, items: int, tokens: int, seconds: float) -> None:
        """A batch has been scored."""
        self._recorder.observe(BATCH_ITEMS, (items,))
        self._recorder.observe(BATCH_TOKENS, (tokens,))
        self._recorder.observe(BATCH_SECONDS, (seconds,))

    def prompt(self, tokens: int, cached: int) -> None:
        """Inputs of so many tokens were given to the engine, which had `cached` of them in its prefix cache."""
        self._recorder.add(PROMPT_TOKENS, tokens)
        self._recorder.add(CACHED_TOKENS, cached)

    def waiting(self, n: int) -> None:
        """So many inputs are in the engine now."""
        self._waiting = n

    def lost(self, reason: str) -> None:
        """A request gets no rewards from the engine, for a short, stable reason."""
        self._recorder.add(LOST, 1, (reason,))

    def flush(self) -> None:
        """Hand everything to Ray; a thread calls this."""
        self._recorder.flush()
        self._recorder.set(WAITING, self._waiting)

    def close(self) -> None:
        """Hand over what is left and end the thread."""
        self._ticker.close()


def observer(config: Callable[[], ServeConfig], card: Callable[[], ModelCard]) -> RequestObserver:
    """What an API replica tells of its requests: metrics, and the access log where the settings ask for it.

    Args:
        config, card: settings and model in force, asked whenever they are needed.
    """
    metrics = ServiceMetrics(card, lambda: config().drift_window)
    return Observers(metrics, AccessLog(lambda: config().access_log))
