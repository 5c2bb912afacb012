"""A trained model as bytes: an npz of plain arrays, none of them pickled, with its model card. Pure."""

import io
import zipfile
from dataclasses import dataclass

import msgspec
import numpy as np

from models.gnn.calibration import LEVELS, Calibration
from models.gnn.features import EDGE_FEATURES, FEATURE_VERSION, NODE_FEATURES
from models.gnn.inference import Singles, parameter_count, shapes
from schemas.errors import ConfigurationError

FORMAT_VERSION = 1
MAX_BYTES = 4 << 20
"""A checkpoint is some tens of kilobytes; nothing larger is read."""
_CARD = "card"
_TAILS = ("link", "signals", "statistical")


class TrainingData(msgspec.Struct, frozen=True):
    """What a model was trained on.

    ``windows``: read, from ``from_ms`` to ``to_ms`` of event time; ``edges``: with calls, over all windows held.
    """

    source: str
    tenant: str
    lane: str
    windows: int
    training_windows: int
    validation_windows: int
    edges: int
    from_ms: int
    to_ms: int


class ModelCard(msgspec.Struct, frozen=True):
    """What a model is, for people and for ``decode``.

    Attributes:
        scores: figures on the later windows that stopped the training: losses, ``link_auc`` (edges hidden from the
            graph against drawn pairs), ``signal_nll`` beside ``signal_nll_as_usual`` (expecting every edge as usual).
        versions: of what trained it.
    """

    data: TrainingData
    seed: int
    epochs: int
    best_epoch: int
    seconds: float
    device: str
    scores: dict[str, float]
    versions: dict[str, str]
    parameters: int = msgspec.field(default_factory=parameter_count)
    node_features: dict[str, str] = msgspec.field(default_factory=lambda: dict(NODE_FEATURES))
    edge_features: dict[str, str] = msgspec.field(default_factory=lambda: dict(EDGE_FEATURES))
    intended_use: str = "Ranks edges of this tenant's lane by how little their window's graph explains them."
    limits: str = (
        "Learns what was usual, attacks in the training windows included. Edges that fell silent get no score."
    )
    format_version: int = FORMAT_VERSION
    feature_version: int = FEATURE_VERSION


class _Versions(msgspec.Struct, frozen=True):
    format_version: int
    feature_version: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can score: its card, its weights, and what scores are normal."""

    card: ModelCard
    weights: dict[str, Singles]
    calibration: Calibration


def encode(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint's file."""
    arrays = {f"weight.{name}": value for name, value in checkpoint.weights.items()}
    for name in _TAILS:
        arrays[f"tail.{name}"] = getattr(checkpoint.calibration, name)
    arrays["new_share"] = np.array(checkpoint.calibration.new_share)
    arrays[_CARD] = np.frombuffer(msgspec.json.encode(checkpoint.card), dtype=np.uint8)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def decode(data: bytes) -> Checkpoint:
    """Read a checkpoint's file.

    Raises:
        ConfigurationError: it is none, is damaged, or of another format or of other features.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too large")
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            if sum(part.file_size for part in parts.infolist()) > MAX_BYTES:
                raise ValueError("too large unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = arrays[_CARD].tobytes()
        versions = msgspec.json.decode(text, type=_Versions)
    except Exception as error:  # zip, npy and JSON readers raise their own trees on damaged files
        raise ConfigurationError(f"this is no model of `drift train` ({_line(error)}): train one") from None
    if (versions.format_version, versions.feature_version) != (FORMAT_VERSION, FEATURE_VERSION):
        raise ConfigurationError(
            f"the model is of format {versions.format_version} and features {versions.feature_version}, this version "
            f"reads format {FORMAT_VERSION} and features {FEATURE_VERSION}: train it again with `drift train`"
        )
    try:
        card = msgspec.json.decode(text, type=ModelCard)
        weights = {name: _array(arrays, f"weight.{name}", shape) for name, shape in shapes().items()}
        link, signals, statistical = (_array(arrays, f"tail.{name}", (LEVELS,)).astype(np.float64) for name in _TAILS)
        calibration = Calibration(link, signals, statistical, float(arrays["new_share"]))
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"the model is damaged ({_line(error)}): train it again with `drift train`") from None
    return Checkpoint(card, weights, calibration)


def _array(arrays: dict[str, Singles], name: str, shape: tuple[int, ...]) -> Singles:
    array = arrays[name]
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{name} is not {shape} finite numbers")
    return array


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
