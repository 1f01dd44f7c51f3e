"""Run folders: read while they are written, listed, drawn and compared. Nothing here imports torch."""
