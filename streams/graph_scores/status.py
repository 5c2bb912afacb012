"""How the graph model stands on the stream, for readiness, metrics and the start's banner. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.ids import REPLAY_PREFIX
from streams.graph_scores.assembly import LaneKey

if TYPE_CHECKING:  # it needs scipy, which a worker without models need not load
    from streams.graph_scores.model_folder import Found

NAMED = 3
"""So many lanes are named; of the rest, how many there are."""
OFF = "off (gnn.models_dir is not set)"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Of the lanes whose windows came to this worker lately.

    Attributes:
        scored, missing, refused: lanes with a model, without one, and with a file that cannot be used.
        problems: what is not as it should be, a line each, ``NAMED`` lanes at most; a replay without a model is none.
        unnamed: how many more lanes have such a problem.
    """

    scored: int = 0
    missing: int = 0
    refused: int = 0
    problems: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return the problems, and how many are not named."""
        more = (f"graph model: {self.unnamed} more lanes without a usable model",) if self.unnamed else ()
        return (*self.problems, *more)


def status_of(found: "Iterable[Mapping[LaneKey, Found]]", failure: str = "") -> ModelStatus:
    """Judge what was found by lane, and why the reading of windows failed, if it did."""
    lanes = sorted((lane, one) for some in found for lane, one in some.items())
    scored = sum(one.model is not None for _, one in lanes)
    refused = sum(one.is_refused for _, one in lanes)
    told = [one.problem for (_, lane), one in lanes if one.is_refused]
    told += [
        one.problem
        for (_, lane), one in lanes
        if one.model is None and not one.is_refused and not lane.startswith(REPLAY_PREFIX)
    ]
    problems = [f"graph model: windows are not scored: {failure}"] if failure else []
    problems += [f"graph model: {text}" for text in told[:NAMED]]
    missing = len(lanes) - scored - refused
    return ModelStatus(scored, missing, refused, tuple(problems), max(0, len(told) - NAMED))


def banner(models_dir: Path | None) -> str:
    """Return what a start says of the graph model."""
    return OFF if models_dir is None else f"models of {models_dir}"
