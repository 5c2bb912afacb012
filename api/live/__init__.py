"""Drift events as they happen: one reader of the topic, many clients, who resume behind the last event they saw."""
