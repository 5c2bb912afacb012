"""Published data sets of known root causes, read into what ErrorRank takes."""
