"""Evidence: one signal of many edges or services that is not as in its baseline. What all adapters give. Pure.

Each piece says how sure it is (``score``, in spreads of the baseline), how much it is (``excess``: time lost, calls
that failed) and which way it points (``moves``). Where it was measured (stored windows, traces, metrics) makes no
difference from here on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from models.rca.robust import Floats, Ints, Mask

Z_THRESHOLD = 3.0
"""Spreads from the baseline from which a shift is evidence; below is the noise of ordinary windows."""
FADING = 4.0
"""Power with which scores below the threshold fade: two of three spreads count a fifth."""
MIN_SAMPLE_CALLS = 3
"""Calls a subject needs in each range before its ratios and latencies say anything."""
USUAL_UP_TO = 0.9
"""What nine in ten did before is usual: beyond it a call is slow, and up to it reaches a metric's usual swing."""
PRIOR_WINDOWS = 3.0
"""Windows of a typical service that a subject's own spread is mixed with: three windows alone are no spread."""
TYPICAL_WANDERING = 0.1
"""How far a share of calls wanders between windows, where too few windows were seen."""
MIN_RELATIVE_SPREAD = 0.1
"""Least believable spread as a share of the level: a few calm baseline windows are no proof of calm."""
MIN_SPREAD_US = 200.0
MIN_SPREAD_RATIO = 0.01
NO_CALLER = -1


@dataclass(frozen=True, slots=True)
class Moves:
    """Where a signal's evidence goes in one step: ``share`` of what is at ``source`` to ``target``, each ``(M,)``.

    The shares of one source sum to 1 at most; it keeps the rest.
    """

    source: Ints
    target: Ints
    share: Floats

    @classmethod
    def none(cls) -> "Moves":
        """Return no move at all: evidence that stays where it was found."""
        nowhere = np.empty(0, dtype=np.int64)
        return cls(nowhere, nowhere, np.empty(0))


@dataclass(frozen=True, slots=True)
class Shift:
    """One signal of ``S`` subjects, edges or services, against the baseline.

    Attributes:
        unit: of observed and expected. excess_unit: signals of one such unit are weighed against each other.
        src, dst: ``(S,)``, positions in the topology; ``src`` is ``NO_CALLER`` where the signal is the service's own.
        score: ``(S,)``, spreads from the baseline, not negative; evidence from ``Z_THRESHOLD`` on.
        excess: ``(S,)``, not negative: how much there is beyond the baseline, summed over the range.
        observed, expected: ``(S,)``. sample: calls or samples now. history: windows or samples behind the expectation.
        blame: ``(S,)``, 0..1: the share that is the callee's rather than the caller's.
        remarks: by subject, which of its calls the signal is about and what they do, in words.
        handed_on: the evidence counts for where it moves to as well.
    """

    signal: str
    unit: str
    excess_unit: str
    src: Ints
    dst: Ints
    score: Floats
    excess: Floats
    observed: Floats
    expected: Floats
    sample: Ints
    history: Ints
    blame: Floats
    moves: Moves
    remarks: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    handed_on: bool = False

    @classmethod
    def of_services(
        cls,
        signal: str,
        unit: str,
        excess_unit: str,
        *,
        score: Floats,
        excess: Floats,
        observed: Floats,
        expected: Floats,
        sample: Ints,
        history: Ints,
        moves: Moves | None = None,
        remarks: Mapping[int, tuple[str, str]] | None = None,
        handed_on: bool = False,
    ) -> "Shift":
        """Return a signal of all services themselves; columns are ``(N,)``."""
        nodes = len(score)
        return cls(
            signal=signal,
            unit=unit,
            excess_unit=excess_unit,
            src=np.full(nodes, NO_CALLER, dtype=np.int64),
            dst=np.arange(nodes, dtype=np.int64),
            score=np.maximum(score, 0.0),
            excess=np.maximum(excess, 0.0),
            observed=observed,
            expected=expected,
            sample=sample,
            history=history,
            blame=np.ones(nodes),
            moves=moves or Moves.none(),
            remarks=remarks or {},
            handed_on=handed_on,
        )

    @property
    def is_evidence(self) -> Mask:
        """Which subjects are out of the ordinary, ``(S,)``: what may be cited."""
        return self.score >= Z_THRESHOLD

    @property
    def certainty(self) -> Floats:
        """How far each subject counts, 0..1, ``(S,)``."""
        return certainty_of(self.score)


def certainty_of(score: Floats) -> Floats:
    """Return how far a score counts: in full as evidence, below that fading fast.

    What is a little out of the ordinary and does great harm is named before what is clearly so and does none.
    """
    fading: Floats = np.minimum(score / Z_THRESHOLD, 1.0) ** FADING
    return fading
