"""Files of a change, YAML or edge lists, to documents that know their lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from models.prediction.documents import LINE, Document
from schemas.errors import ConfigurationError

MAX_FILE_BYTES = 16 << 20
MAX_ALIASES = 1_000
"""Anchors a file may repeat: a few lines of them can stand for gigabytes."""
SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(yaml.SafeLoader):
    """Keeps the line at which each mapping starts."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError("too many aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep=deep)
        found[LINE] = node.start_mark.line + 1
        return found


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
            for value in yaml.load_all(text, _Loader):  # a safe loader: plain values alone
                if isinstance(value, dict):
                    documents.append(Document(str(file), value))
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{file} is not UTF-8 text") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigurationError(
                f"{file} is no YAML: {' '.join(str(error).split())}; templates must be rendered first (helm template, "
                "kustomize build)"
            ) from error
    return documents


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
    else:
        yield path
