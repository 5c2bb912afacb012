"""Collect samples of metrics from columns of several files."""

from collections.abc import Sequence

import numpy as np

from deploy.rca_datasets.files import Floats, Ints
from schemas.rca_inputs import Metric, MetricSamples


class SampleColumns:
    """Columns of samples, added up file by file."""

    def __init__(self, services: Sequence[str]) -> None:
        """``services``: all names that will be added."""
        self._services = list(services)
        self._index = {name: i for i, name in enumerate(self._services)}
        self._parts: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []

    def add(
        self, metric: Metric, names: list[str], dst: Ints, at_s: Ints, value: Floats, src: Ints | None = None
    ) -> None:
        """Add samples of ``dst``, or of edges from ``src`` to it: ``(R,)``, positions in ``names``."""
        place = np.array([self._index[name] for name in names], dtype=np.int64)
        metric_column = np.full(len(dst), list(Metric).index(metric), dtype=np.int64)
        caller = np.full(len(dst), -1, dtype=np.int64) if src is None else place[src]
        self._parts.append((caller, place[dst], metric_column, at_s * 1000, value))

    def samples(self) -> MetricSamples:
        """Return all that was added."""
        if not self._parts:
            none = np.empty(0, dtype=np.int64)
            return MetricSamples(self._services, none, none, none, none, np.empty(0))
        src, dst, metric, at_ms = (np.concatenate([part[i] for part in self._parts]) for i in range(4))
        value = np.concatenate([part[4] for part in self._parts])
        return MetricSamples(self._services, src, dst, metric, at_ms, value)
