"""Recorded days with faults whose times are known, put through the state machine: what is found, what is not."""
