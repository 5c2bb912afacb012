"""Drifts of known kind and size, injected into resampled real traffic: `drift evaluate drifts`."""
