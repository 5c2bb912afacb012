"""The models of a folder, by tenant and lane, read again when their files change. Does I/O: stats and small reads.

`<tenant>.<lane>.npz` is the lane's own; else `<tenant>.npz`, if it was trained on that lane. The card must name the
tenant: a file's name alone does not tell tenant `a.b` from lane `b` of tenant `a`.
"""

import hashlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from models.gnn.checkpoint import MAX_BYTES, Checkpoint, decode
from schemas.errors import ConfigurationError

SUFFIX = ".npz"
_VERSION_DIGITS = 12
_Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and its version: the first hexadecimal digits of its file's SHA-256."""

    checkpoint: Checkpoint
    version: str


@dataclass(frozen=True, slots=True)
class Found:
    """A lane's model, or why there is none; ``is_refused``: there is a file, and it cannot be used."""

    model: LoadedModel | None
    problem: str = ""
    is_refused: bool = False


def load_model(file: Path) -> LoadedModel:
    """Read a model's file.

    Raises:
        ConfigurationError: there is none, or it is of another version or damaged.
    """
    try:
        with file.open("rb") as whole:
            data = whole.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(f"there is no model at {file}: make one with `drift train --out {file}`") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read the model {file}: {error.strerror}") from error
    return LoadedModel(decode(data), hashlib.sha256(data).hexdigest()[:_VERSION_DIGITS])


def read_model(file: Path) -> Checkpoint:
    """Read a model as `load_model` does, without its version."""
    return load_model(file).checkpoint


def model_files(folder: Path, tenant: str, lane: str) -> tuple[Path, Path]:
    """Return where a lane's own model and its tenant's are looked for; what a file's name cannot hold is %-encoded."""
    names = quote(tenant, safe=":@ "), quote(lane, safe=":@ ")
    return folder / f"{names[0]}.{names[1]}{SUFFIX}", folder / f"{names[0]}{SUFFIX}"


class ModelFolder:
    """Looks models up; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, tuple[_Signature, LoadedModel | str]] = {}

    def look(self, tenant: str, lane: str) -> Found:
        """Return a lane's model as its file is now. Never raises; a problem is one line that can be printed."""
        found = self._look(tenant, lane)
        return found if found.problem.isprintable() else replace(found, problem=_printable(found.problem))

    def _look(self, tenant: str, lane: str) -> Found:
        own, shared = model_files(self.folder, tenant, lane)
        refused = ""
        for file in (own, shared):
            model = self._current(file)
            if model is None:
                continue
            if isinstance(model, str):
                return Found(None, f"{file.name}: {model}", is_refused=True)
            data = model.checkpoint.card.data
            if data.tenant != tenant:
                refused = (
                    f"{file.name} was trained on tenant {data.tenant!r}, not on {tenant!r}: train it with --tenant"
                )
            elif file == own or data.lane == lane:
                return Found(model)
        if refused:
            return Found(None, refused, is_refused=True)
        command = ["drift", "train", "--tenant", tenant, "--lane", lane, "--out", str(own)]
        return Found(None, f"no model for tenant {tenant}, lane {lane}: train one by `{shlex.join(command)}`")

    def _current(self, file: Path) -> LoadedModel | str | None:
        """Return the file's model, why it cannot be used, or ``None`` where there is no file."""
        try:
            stat = file.stat()
        except OSError:  # not there, a name too long for a file, a folder that may not be read
            self._read.pop(file, None)
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._read.get(file)
        if known is not None and known[0] == signature:
            return known[1]
        try:
            model: LoadedModel | str = load_model(file)
        except ConfigurationError as error:
            model = str(error)
        self._read[file] = (signature, model)
        return model


def _printable(text: str) -> str:
    """Return a text whose names come from producers as one line without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
