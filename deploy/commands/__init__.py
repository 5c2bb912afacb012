"""The commands of `drift`, one file per subject. Each translates arguments and prints; the work is elsewhere."""
