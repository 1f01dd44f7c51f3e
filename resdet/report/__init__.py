"""What became of every detection and every object, as numbers and as a page."""
