"""What is remembered of a tenant's source in a lane, and noted of it in an open window. Pure."""

import msgspec

from schemas.drift import HOST_SUBJECT
from schemas.ids import stable_hash64

MAX_HOSTS = 1_000
"""Hosts of a tenant that are watched; of more, those with the least hash of the name."""
MAX_NOTED = 1_500
"""Hosts of a tenant that are noted in an open window before they are cut down to ``MAX_HOSTS``."""
NOBODY = ""
"""Host of rows that name none: its sampling is watched, its silence is the tenant's."""
UNTOLD, TOLD, TOLD_TOGETHER = 0, 1, 2
_MOST_SILENT = 50
"""Numbers of hosts that are silent at once from here on are one."""
_DAY_TICKS = 1_440
_KEPT_A_TICK = 0.5 ** (1 / _DAY_TICKS)
_RARE = 0.05


class Factor(msgspec.Struct, array_like=True):
    """Rows whose measures were multiplied by about the same factor: its step, how many they are, and its sum."""

    step: int
    rows: int = 0
    total: int = 0


class Seen(msgspec.Struct, array_like=True):
    """Rows of one host in a window, by the step that their sampling factor lies at, ascending."""

    factors: list[Factor] = []

    @property
    def rows(self) -> int:
        """Return how many there are."""
        return sum(factor.rows for factor in self.factors)

    def add(self, step: int, rows: int, total: int) -> None:
        """Count rows whose factors lie at one step; ``total`` is their sum."""
        factor = next((known for known in self.factors if known.step == step), None)
        if factor is None:
            factor = Factor(step)
            self.factors.append(factor)
            self.factors.sort(key=lambda known: known.step)
        factor.rows += rows
        factor.total += total


class Lost(msgspec.Struct, array_like=True):
    """Reports of loss by a host in a window. ``records``: lost, where said. ``unsaid``: reports without a number."""

    reports: int = 0
    records: int = 0
    unsaid: int = 0


class Noted(msgspec.Struct):
    """What came of one tenant in one open window. ``lost``: by kind and host. ``late``: rows among ``rows``."""

    rows: int = 0
    late: int = 0
    hosts: dict[str, Seen] = {}
    lost: dict[str, dict[str, Lost]] = {}

    def add_rows(self, host: str, step: int, rows: int, total: int) -> None:
        """Count rows of a host. ``step``: of their sampling factors, ``total``: the sum of these."""
        seen = self.hosts.get(host)
        if seen is None:
            seen = self.hosts[host] = Seen()
            if len(self.hosts) > MAX_NOTED:
                keep_watched(self.hosts)
        seen.add(step, rows, total)
        self.rows += rows

    def add_loss(self, kind: str, host: str, count: int) -> None:
        """Count a report of loss; ``count`` below zero is unknown."""
        by_host = self.lost.setdefault(kind, {})
        lost = by_host.get(host)
        if lost is None:
            lost = by_host[host] = Lost()
            if len(by_host) > MAX_NOTED:
                keep_watched(by_host)
        lost.reports += 1
        lost.records += max(count, 0)
        lost.unsaid += count < 0


class Sampling(msgspec.Struct, array_like=True):
    """The sampling factor that prevails.

    Attributes:
        step, factor: where it lies, and its mean. share: of rows that have it (0..1).
        doubted, agreeing: rows since its share fell to half, and those among them that have it.
    """

    step: int
    factor: float
    share: float
    doubted: int = 0
    agreeing: int = 0


class HostState(msgspec.Struct, array_like=True):
    """What is remembered of a host.

    Attributes:
        first, last: ticks of its first and last rows. last_index: window of the last.
        gap, usual: its longest and second longest distance from one tick with rows to the next.
        seen: whole windows it reported in, since the tick ``since``.
        told: whether its silence was told, alone or together with others'.
        sampling: by what its measures are multiplied, once known.
    """

    first: int
    last: int
    last_index: int
    gap: int = 1
    usual: int = 1
    seen: int = 0
    since: int = 0
    told: int = UNTOLD
    sampling: Sampling | None = None


class TenantTelemetry(msgspec.Struct):
    """What is remembered of a tenant's source in a lane.

    Attributes:
        ticks: whole windows with rows. last_index, gap, usual: of windows with rows, as of a host.
        is_missing: in the last window with rows, hosts had been silent for too long to be chance, and not replaced.
        is_doubtful: ... hosts that always report were missing, which may become that.
        lost_until: what the source said it lost, or delivered late, is felt up to this window.
        resampled_index: window in which a host's sampling changed. resampled_until: up to when that is felt.
        quiet_floor: last window with rows in which the source was losing data.
        silent: ticks in which so many hosts were silent at once, from none on; halved each 1,440 ticks.
    """

    ticks: int = 0
    last_index: int = -1
    gap: int = 1
    usual: int = 1
    is_missing: bool = False
    is_doubtful: bool = False
    lost_until: int = -1
    resampled_index: int = -1
    resampled_until: int = -1
    quiet_floor: int = -1
    silent: list[float] = []
    hosts: dict[str, HostState] = {}

    def is_losing(self, index: int) -> bool:
        """Say whether the source was losing data in a window that is closing, or in one with nothing to close."""
        until = max(self.lost_until, self.resampled_until)
        return 0 <= index <= until or (self.is_missing and self._goes_on(index))

    def _goes_on(self, index: int) -> bool:
        """Say whether the tenant has rows: where all is silent, no host of it is missing."""
        return index - self.last_index < self.usual

    def may_teach(self, index: int) -> bool:
        """Say whether a window shows what is usual: with another sampling it does, as soon as no window mixes both."""
        if index <= self.lost_until or index == self.resampled_index:
            return False
        return not (self.is_missing and self._goes_on(index))

    def withholds(self, index: int) -> bool:
        """Say whether what is missing from a window means nothing, or may turn out to."""
        return self.is_losing(index) or (self.is_doubtful and self._goes_on(index))

    def floor(self, index: int) -> int:
        """Return the window from whose end on silence counts, as far as known at ``index``."""
        until = max(self.quiet_floor, self.lost_until, self.resampled_until)
        return max(until, index) if self.is_missing and self._goes_on(index) else until

    def waits_until(self, index: int) -> int:
        """Return the window up to which no silence is told yet: in doubt it is put off, and counts on."""
        return index if self.withholds(index) else self.floor(index)

    def usual_silent(self) -> int:
        """Return how many silent hosts at once are nothing new: more were in few ticks of late, or of a day at least.

        Where an autoscaler takes hosts away several times a day, that some are gone says nothing.
        """
        rare = _RARE * max(sum(self.silent), _DAY_TICKS)
        usual, more = len(self.silent), 0.0
        while usual > 0 and more <= rare:
            usual -= 1
            more += self.silent[usual]
        return usual if more > rare else 0

    def note_silent(self, count: int) -> None:
        """Remember how many hosts were silent in a tick."""
        count = min(count, _MOST_SILENT)
        self.silent += [0.0] * (count + 1 - len(self.silent))
        self.silent = [round(ticks * _KEPT_A_TICK, 6) for ticks in self.silent]
        self.silent[count] += 1

    def is_silent(self, subject: str) -> bool:
        """Say whether the hosts that a finding is about are still silent."""
        if subject.startswith(HOST_SUBJECT):
            host = self.hosts.get(subject.removeprefix(HOST_SUBJECT))
            return host is not None and host.told == TOLD
        return any(host.told == TOLD_TOGETHER for host in self.hosts.values())

    def has_forgotten(self, subject: str) -> bool:
        """Say whether the host that a finding is about is gone for good."""
        return subject.startswith(HOST_SUBJECT) and subject.removeprefix(HOST_SUBJECT) not in self.hosts


def keep_watched(hosts: dict[str, Seen] | dict[str, Lost] | dict[str, HostState]) -> None:
    """Keep ``MAX_HOSTS`` of the hosts: whichever came first, the same ones are left."""
    if len(hosts) <= MAX_HOSTS:
        return
    named = sorted((name for name in hosts if name != NOBODY), key=lambda name: (stable_hash64("host", name), name))
    for name in named[MAX_HOSTS:]:
        del hosts[name]
