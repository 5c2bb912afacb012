"""`drift doctor`: what is looked at, and how each finding is judged."""
