"""What the words mean: types, topics, tables, settings. Imports nothing of ours."""
