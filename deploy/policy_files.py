"""Policy files, YAML or JSON, to documents."""

from pathlib import Path

import msgspec
import yaml

from schemas.documents import MAX_DOCUMENT_BYTES
from schemas.errors import ConfigurationError
from schemas.policies import Policies, check_policies, encode_policies
from streams.result import short


def read_policy_file(path: Path) -> Policies:
    """Read a policy file; one name may stand for a list of names.

    Raises:
        ConfigurationError: the file cannot be read, or a rule makes no sense.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        for rule in plain["rules"] if isinstance(plain, dict) and isinstance(plain.get("rules"), list) else ():
            for end in ("from", "to"):
                if isinstance(rule, dict) and isinstance(rule.get(end), str):
                    rule[end] = [rule[end]]
        policies = msgspec.convert(plain, Policies)
        check_policies(policies)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {short(str(error))}") from error
    size = len(encode_policies(policies))
    if size > MAX_DOCUMENT_BYTES:
        raise ConfigurationError(f"{path}: {size:,} bytes; the limit is {MAX_DOCUMENT_BYTES:,}: cut it in two")
    return policies
