"""Streaming edge scorer: how surprising each single edge record is, in constant memory and one pass. Pure."""
