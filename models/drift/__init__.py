"""What counts as drift, and how it is said."""
