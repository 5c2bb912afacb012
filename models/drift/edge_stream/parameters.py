"""Parameters of the edge scorer: sizes of its tables, how it forgets, and the weight of each part. Pure."""

from dataclasses import dataclass

MINUTE_MS = 60_000
DAY_MINUTES = 1_440
UNIT = 64
"""Counts are kept as integers in 1/64 of a record, so that forgetting loses little and never depends on rounding."""


@dataclass(frozen=True, slots=True)
class EdgeWeights:
    """Weight of each part in the score: small integers, so that scores are exact.

    Chosen for the worst of many splits in time and for injected traffic that the data set lacks, attacks that poll
    for days among it (docs/detection-quality.md); neighbours of these values score alike, which is why they are round.
    """

    rarity: int = 14
    burst: int = 2
    persistence: int = 4
    exposure: int = 4
    usual_load: int = 1
    fan_out: int = 4
    tenure: int = 14


@dataclass(frozen=True, slots=True)
class EdgeScorerParams:
    """What the scorer is made of; memory per tenant follows from it alone.

    Attributes:
        rows: independent sketch rows; the least of them counts (Cormode & Muthukrishnan 2005). At most 2.
        columns: cells in a row, a power of two; more means fewer services share a cell.
        edge_columns: cells for edges, a power of two.
        minute_cap: records of one minute that enter a history at most: a burst cannot make itself usual.
        probation: of a caller's records since midnight (UTC) 1/probation counts as history at once, and each midnight
            believes another 1/probation of what is left: an attack of days does not become usual in hours.
        memory_days: half-life of histories and peaks; edges unseen for so long are new again.
    """

    rows: int = 2
    columns: int = 1 << 14
    edge_columns: int = 1 << 18
    minute_cap: int = 100
    probation: int = 4
    memory_days: int = 30
    weights: EdgeWeights = EdgeWeights()

    def __post_init__(self) -> None:
        """Refuse sizes that the tables cannot have.

        Raises:
            ValueError: a size is out of range or not a power of two.
        """
        for name in ("columns", "edge_columns"):
            size = getattr(self, name)
            if not 16 <= size <= 1 << 24 or size & (size - 1):
                raise ValueError(f"{name} is {size}, must be a power of two from 16 to {1 << 24}")
        if self.rows not in (1, 2):
            raise ValueError(f"rows is {self.rows}, must be 1 or 2")
        if self.minute_cap < 1 or self.memory_days < 1:
            raise ValueError("minute_cap and memory_days must be at least 1")
        if self.probation < 1:
            raise ValueError(f"probation is {self.probation}, must be at least 1")

    @property
    def daily_keep(self) -> int:
        """Share of a history that a day leaves, in 1/65536."""
        share: float = 2.0 ** (-1.0 / self.memory_days)
        return round(65_536 * share)
