"""The windowed graph of one `tenant-log` partition: a deterministic state machine."""
