"""Sentences for people, made from evidence alone."""
