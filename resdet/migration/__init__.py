"""Other tools' configs: read without running anything, translated key by key, every key accounted for."""
