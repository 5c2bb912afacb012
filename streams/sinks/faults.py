"""What a failed insert means: wait and repeat, set the message aside, or stop and say why. Pure."""

from enum import Enum

from clickhouse_connect.driver.exceptions import ClickHouseError, NotSupportedError, ProgrammingError
from urllib3.exceptions import HTTPError

from schemas.clickhouse_dsn import error_code


class Fault(Enum):
    """How an insert goes on after an error."""

    RETRY = "retry"
    POISON = "poison"
    GIVE_UP = "give-up"


POISON_CODES = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        25,  # CANNOT_PARSE_ESCAPE_SEQUENCE
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        43,  # ILLEGAL_TYPE_OF_ARGUMENT
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        190,  # SIZES_OF_ARRAYS_DONT_MATCH
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    }
)
"""The data of some row; other rows are fine."""

GIVE_UP_CODES = {
    16: "a column is missing: run `drift migrate`",
    20: "the number of columns differs: run `drift migrate`",
    47: "a column is missing: run `drift migrate`",
    60: "the table is missing: run `drift migrate`",
    62: "the server does not understand the statement: it may be too old",
    81: "the database is missing: run `drift migrate`",
    115: "the server does not know a setting of the insert: it may be too old",
    164: "the user may only read: grant it INSERT",
    192: "the user is not known: correct clickhouse.dsn",
    193: "the password is wrong: correct clickhouse.dsn",
    194: "a password is wanted: correct clickhouse.dsn",
    497: "the user may not insert: grant it INSERT",
    516: "the user or password is wrong: correct clickhouse.dsn",
}
"""Only an operator can mend these. Everything else is waited out: Kafka holds the data meanwhile."""


def classify(error: BaseException) -> Fault:
    """Say what to do about an error of an insert.

    An unknown ClickHouse error is waited out: giving up would need a person, and losing is no choice. An error that
    is neither ClickHouse's nor the network's nor the file system's is a bug of ours and stops the sink.
    """
    code = error_code(error) if isinstance(error, ClickHouseError) else None
    if code in POISON_CODES:
        return Fault.POISON
    if code in GIVE_UP_CODES:
        return Fault.GIVE_UP
    if code is None and isinstance(error, ProgrammingError | NotSupportedError):
        return Fault.GIVE_UP
    # OSError: embedded inserts go through a temporary file, so a full disk shows here too.
    return Fault.RETRY if isinstance(error, ClickHouseError | HTTPError | OSError) else Fault.GIVE_UP


def describe(error: BaseException) -> str:
    """Return the error in short for logs: ClickHouse's code and name, never row data."""
    if not isinstance(error, ClickHouseError):
        return type(error).__name__
    code = error_code(error)
    name = getattr(error, "name", None) or type(error).__name__
    return f"{name} (code {code})" if code is not None else f"{name}, no answer from the server"


def advice(error: BaseException) -> str:
    """Return what the operator should do about an error that is given up on."""
    code = error_code(error) if isinstance(error, ClickHouseError) else None
    return GIVE_UP_CODES.get(code or 0, "this is a bug, please report it")
