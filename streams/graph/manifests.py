"""The manifest of a checkpoint: which chunks make up the state, under which keys they lie. Pure."""

import msgspec

from schemas.errors import CheckpointError

MANIFEST_VERSION = 1
"""Fields may be added within a version, never change their meaning: older workers read what they know of it."""
MANIFEST_PREFIX = "manifest@"
UNKNOWN_POSITION = -1

Order = tuple[int, int]
"""``(epoch, offset)``: of two checkpoints the one with the higher order is the later state."""


class ChunkRef(msgspec.Struct, frozen=True, array_like=True):
    """A stored chunk: at which log offset it was written, its stored size and the digest of its content.

    ``epoch`` is that of the manifest it was written for: offsets begin anew with each incarnation of the log.
    ``position`` is where the store has it, if it is a log; a hint, the key decides.
    """

    offset: int
    size_bytes: int
    digest: str
    epoch: int = 0
    position: int = UNKNOWN_POSITION


class Manifest(msgspec.Struct, frozen=True):
    """Names the chunks of one checkpoint.

    Attributes:
        offset: last `tenant-log` offset that the state contains.
        events_offset: offset of `drift-events` from which replayed events may have been published already.
        incarnation: of the log; another one means that offsets and coordinates say nothing any more.
        epoch: how many incarnations the state had been through before: offsets of a later one are later, however low.
        previous: where the store has the manifest before this one, if it is a log.
    """

    offset: int
    events_offset: int
    incarnation: str
    chunks: dict[str, ChunkRef]
    v: int = MANIFEST_VERSION
    epoch: int = 0
    previous: int = UNKNOWN_POSITION

    @property
    def order(self) -> Order:
        """Return what manifests are sorted by."""
        return self.epoch, self.offset

    @property
    def key(self) -> str:
        """Return the key it is stored under."""
        return _key(MANIFEST_PREFIX, self)

    def keys(self) -> dict[str, str]:
        """Return the key of each chunk by its name."""
        return {name: chunk_key(name, ref) for name, ref in self.chunks.items()}


def chunk_key(name: str, ref: ChunkRef) -> str:
    """Return the key a chunk is stored under."""
    return _key(f"{name}@", ref)


def _key(prefix: str, written: ChunkRef | Manifest) -> str:
    """Name what was written; two epochs never share a key, or a new one could overwrite what an old one needs."""
    return f"{prefix}{written.epoch}.{written.offset}" if written.epoch else f"{prefix}{written.offset}"


def order_of(key: str) -> Order | None:
    """Return the order of the checkpoint that a key was written for; ``None`` if it is no key of ours."""
    epoch, dot, offset = key.rpartition("@")[2].rpartition(".")
    if not offset.isdecimal() or (dot and not epoch.isdecimal()):
        return None
    return int(epoch or 0), int(offset)


def is_manifest(key: str) -> bool:
    """Say whether a manifest lies under this key."""
    return key.startswith(MANIFEST_PREFIX)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the stored form."""
    return msgspec.json.encode(manifest)


def read_manifest(value: bytes) -> Manifest:
    """Read a stored manifest.

    Raises:
        CheckpointError: it is damaged, or of a version that this worker cannot read.
    """
    try:
        version = msgspec.json.decode(value).get("v")
        if version != MANIFEST_VERSION:
            raise CheckpointError(
                f"the saved state is of manifest version {version}, this worker reads version {MANIFEST_VERSION}: "
                "run the version that wrote it, or a later one"
            )
        return msgspec.json.decode(value, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(
            f"a manifest of the saved state cannot be read ({error}): "
            "another program wrote to the state topic or folder, or the disk is damaged"
        ) from error
