"""A data set, and predictions on it, in a web browser."""
