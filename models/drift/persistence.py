"""Whether a departure is news for its edge: rare by what the edge itself did before, or lasting. Pure, vectorised.

What departs at random all day on one edge never does on another, and a departure that no single window can tell from
chance is none any more once it lasts. So each edge's windows are counted by how far they departed, and a departure
speaks by how rare one so large is here:

- Tails are products of ratios: how many of the windows that reached one level also reached the next, twice as high
  (the product-limit idea of Kaplan & Meier 1958). Before any was seen one in four does, as in the heaviest tail that
  has a spread at all. Windows are forgotten in about ``MEMORY``; a departure that was told and goes on is not counted.
- The log-likelihood ratio for "nearly all windows depart" gathers over windows and does not fall below zero (CUSUM:
  Page 1954; for shares Reynolds & Stoumbos 1999). So one window far beyond all that the edge ever did speaks at once,
  and what it often does speaks when it goes on.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

DIRECTIONS = 7
"""Ways in which an edge can depart: each signal upwards, calls downwards, slow calls."""
BYTES, FEWER, SLOW = 1, 5, 6
"""Directions by number; signals upwards as in models/graph/registry.py, then calls downwards and slow calls."""
_LEVELS = 6
"""Levels of a departure: from a quarter of the threshold on, each twice the one before."""
_LOWEST = 0.25
_AT_ONCE = 3
"""Level of the threshold itself."""
PERSISTENCE_COLUMNS: dict[str, tuple[type, int, int]] = {
    # windows judged, and those of them that reached each level, by direction, fading window by window:
    "departed": (np.float32, 0, DIRECTIONS * (_LEVELS + 1)),
    "departing": (np.float32, 0, DIRECTIONS),  # log-likelihood ratio for "it departs from now on"
}
"""What is remembered of an edge, as models/graph/registry.py declares columns."""
MEMORY = 10_080
"""Windows after which what an edge did is forgotten: a week of minutes."""
_LASTING = 0.9
"""Share of windows that depart under the alternative."""
_SHARE_WINDOWS = 50.0
"""Of how many windows a share that depart is believed before any did: that by which one at the threshold is news."""
_NEXT, _NEXT_WINDOWS = np.array([0.25] * SLOW + [0.1]), 16.0
"""Share of them that also reach the next level, alike; doubts are logarithms already, and fall faster."""
_ONCE = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
"""Departures that are no habit yet: calls, bytes and errors depart for causes that return, latency also by chance."""
_FADING = 0.7
"""What is left of the doubt after each window without calls."""


@dataclass(frozen=True, slots=True)
class Departures:
    """How edges departed in one window, and whether that is news.

    Shapes:
        all ``(E, DIRECTIONS)``. level: highest level reached, 0 for none. judged: the window says something. doubt:
        after it.
    """

    level: IntColumn
    judged: Mask
    doubt: FloatColumn

    def news(self, doubt: FloatColumn) -> Mask:
        """Say which departures are news, ``(E, DIRECTIONS)``; of a doubt of 0, ``(E, 1)``, windows by themselves.

        Bytes are news at the threshold whatever was before: who takes data out needs one window, and may come back.
        """
        least = np.where(doubt > 0, 1, _AT_ONCE)
        mask: Mask = self.judged & (self.level >= least) & (self.doubt >= doubt)
        mask[:, BYTES] |= self.judged[:, BYTES] & (self.level[:, BYTES] >= _AT_ONCE)
        return mask


def level_of(score: FloatColumn, threshold: float | FloatColumn) -> IntColumn:
    """Return the highest level that scores reach, 0 for none."""
    steps = np.log2(np.maximum(score, 1e-9) / (np.maximum(threshold, 1e-9) * _LOWEST))
    level: IntColumn = np.clip(np.floor(steps) + 1, 0, _LEVELS).astype(np.int64)
    return level


def judge(
    departed: FloatColumn,
    departing: FloatColumn,
    level: IntColumn,
    judged: Mask,
    silent: IntColumn,
    most_doubt: FloatColumn,
) -> Departures:
    """Hold a window's departures against what edges did before.

    Shapes:
        departed, departing: ``PERSISTENCE_COLUMNS`` before this window. level, judged: ``(E, DIRECTIONS)``. silent:
        ``(E,)``, windows since the last one with traffic. most_doubt: ``(E, 1)``, that from which it is news; more of
        it would only take longer to fade.
    """
    tail = _tails(departed.reshape(len(departed), DIRECTIONS, _LEVELS + 1), _NEXT, _ONCE, most_doubt)
    rare = np.take_along_axis(tail, np.maximum(level, 1)[:, :, None], axis=2)[:, :, 0]
    speaks = np.log(_LASTING / np.minimum(rare, _LASTING))
    against = np.log((1 - _LASTING) / (1 - np.minimum(tail[:, :, 1], _LASTING)))
    # Whatever the history: what is below the threshold does not speak alone.
    speaks = np.minimum(speaks, most_doubt * np.exp2(np.minimum(level - _AT_ONCE, 0)))
    gain = np.where(judged, np.where(level > 0, speaks, against), 0.0)
    left = departing * np.exp(math.log(_FADING) * np.clip(silent - 1, 0, 100))[:, None]
    doubt: FloatColumn = np.minimum(np.round(np.maximum(left + gain, 0.0), 4), most_doubt)
    return Departures(level, judged, doubt)


def silent_windows(
    departed: FloatColumn, departing: FloatColumn, score: FloatColumn, threshold: FloatColumn, doubt: FloatColumn
) -> IntColumn:
    """Return after how many windows without a call an edge's silence is news, at least 1.

    Shapes:
        as of ``judge``; score: ``(E,)``, how far no call at all lies below the usual, threshold, doubt: ``(E,)``.
    """
    level = level_of(score, threshold)
    counts = departed.reshape(len(departed), DIRECTIONS, _LEVELS + 1)[:, [FEWER]]
    tail = _tails(counts, _NEXT[[FEWER]], _ONCE[[FEWER]], doubt[:, None])[:, 0]
    rare = np.take_along_axis(tail, np.maximum(level, 1)[:, None], axis=1)[:, 0]
    speaks = np.log(_LASTING / np.minimum(rare, _LASTING / 2))
    speaks = np.minimum(speaks, doubt * np.exp2(np.minimum(level - _AT_ONCE, 0)))
    windows: IntColumn = np.ceil(np.round((doubt - departing[:, FEWER]) / np.maximum(speaks, 1e-9), 6)).astype(np.int64)
    return np.maximum(windows, 1)


def _tails(counts: FloatColumn, following: FloatColumn, once: FloatColumn, doubt: FloatColumn) -> FloatColumn:
    """Return which share of an edge's windows reaches each level.

    Shapes:
        counts, returns: ``(E, D, _LEVELS + 1)``. following, once: ``(D,)``, as the constants. doubt: ``(E, 1)``.
    """
    habit = np.maximum(counts[:, :, 1:] - once[:, None], 0)
    ratio = np.ones(counts.shape)
    first: FloatColumn = np.minimum(_LASTING * np.exp(-doubt) / following ** (_AT_ONCE - 1), _LASTING)
    ratio[:, :, 1] = (habit[:, :, 0] + first * _SHARE_WINDOWS) / (counts[:, :, 0] + _SHARE_WINDOWS)
    usual: FloatColumn = following[:, None] * _NEXT_WINDOWS
    ratio[:, :, 2:] = (habit[:, :, 1:] + usual) / (habit[:, :, :-1] + _NEXT_WINDOWS)
    tails: FloatColumn = np.cumprod(ratio, axis=2, dtype=np.float64)
    return tails


def learn(departed: FloatColumn, seen: Departures, told: Mask, teaches: Mask) -> FloatColumn:
    """Return the counts after a window.

    Shapes:
        told: ``(E, DIRECTIONS)``, what was news: it teaches that the edge departs, not how far. teaches: alike, where
        the window counts at all.
    """
    counts = departed.reshape(len(departed), DIRECTIONS, _LEVELS + 1)
    level = np.where(told, np.minimum(seen.level, _AT_ONCE), seen.level)
    reached = level[:, :, None] >= np.arange(_LEVELS + 1)
    after = np.where((seen.judged & teaches)[:, :, None], counts * (1 - 1 / MEMORY) + reached, counts)
    learned: FloatColumn = after.reshape(departed.shape)
    return learned


def learn_silence(departed: FloatColumn, level: IntColumn, windows: IntColumn) -> FloatColumn:
    """Return the counts after ``windows`` without a call, ``(E,)``; ``level``, ``(E,)``: that of no call at all."""
    counts = departed.reshape(len(departed), DIRECTIONS, _LEVELS + 1).copy()
    reached = level[:, None] >= np.arange(_LEVELS + 1)
    counts[:, FEWER] = counts[:, FEWER] * (1 - 1 / MEMORY) ** windows[:, None] + reached * windows[:, None]
    return counts.reshape(departed.shape)
