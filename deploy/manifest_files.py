"""Files of a change, YAML or edge lists, to documents that know their lines."""

from collections.abc import Iterator
from pathlib import Path

from models.prediction.documents import Document
from models.prediction.yaml_text import documents_of
from schemas.errors import ConfigurationError, WireFormatError

MAX_FILE_BYTES = 16 << 20
SUFFIXES = (".yaml", ".yml", ".json")


def read_documents(files: Iterator[Path] | list[Path]) -> list[Document]:
    """Read all documents of files, and of the YAML and JSON files below folders.

    Raises:
        ConfigurationError: a file cannot be read or is no YAML; the text names file and line.
    """
    documents = []
    for file in sorted(one for path in files for one in _below(path)):
        try:
            if file.stat().st_size > MAX_FILE_BYTES:
                raise ConfigurationError(f"{file} is over {MAX_FILE_BYTES >> 20} MiB: give the manifests alone")
            text = file.read_text(encoding="utf-8")
            documents += documents_of(text, str(file))
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{file} is not UTF-8 text") from error
        except WireFormatError as error:
            raise ConfigurationError(
                f"{error}; templates must be rendered first (helm template, kustomize build)"
            ) from error
    return documents


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
    else:
        yield path
