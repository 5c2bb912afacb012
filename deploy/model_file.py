"""The file of a trained model, written whole or not at all, with its card beside it for people."""

import os
import tempfile
from pathlib import Path

import msgspec

from models.gnn.checkpoint import Checkpoint, encode
from schemas.errors import ConfigurationError
from streams.graph_scores.model_folder import read_model as read_model


def card_path(file: Path) -> Path:
    """Return where the card of a model's file stands."""
    return file.with_name(f"{file.name}.card.json")


def write_model(file: Path, checkpoint: Checkpoint) -> None:
    """Write the model, then its card.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    card = msgspec.json.format(msgspec.json.encode(checkpoint.card), indent=2)
    try:
        for path, data in ((file, encode(checkpoint)), (card_path(file), card + b"\n")):
            # Whoever reads a model meanwhile reads the old one or the new one.
            descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            with os.fdopen(descriptor, "wb") as whole:
                whole.write(data)
            Path(name).chmod(0o644)
            Path(name).replace(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write the model to {file}: {error.strerror}") from error
