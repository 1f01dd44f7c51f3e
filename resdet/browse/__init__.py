"""A dataset, and predictions on it, in a web browser."""
