"""One file per producer format: bytes to canonical flows. Pure."""
