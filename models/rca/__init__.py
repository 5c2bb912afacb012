"""Root cause: which service or edge explains what was seen."""
