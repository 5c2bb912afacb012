"""The exception tree.

DriftError
├── ConfigurationError      wrong settings, arguments or credentials: one line that says what to do
├── LossDetected            the log has a gap: records were lost before they reached the state machine
├── RecordsUnavailable      records of accounts cannot be read or written now (schemas/access_records.py)
├── WireFormatError         an internal record cannot be read (another version, damaged)
└── CheckpointError         saved state is missing, damaged or of a version that cannot be read
"""


class DriftError(Exception):
    """Base of all errors of this project. The text is written for the operator."""


class ConfigurationError(DriftError):
    """Settings, arguments or credentials are wrong; the text says what to do."""


class LossDetected(DriftError):
    """`after` of a batch lies above the applied coordinate of its source: something in between is lost."""


class WireFormatError(DriftError):
    """An internal record cannot be decoded."""


class LogicVersionError(DriftError):
    """The log is judged by a logic version that this worker does not know."""


class CheckpointError(DriftError):
    """Saved state cannot be used."""
