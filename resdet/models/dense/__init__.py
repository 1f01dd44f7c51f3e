"""One-stage detectors: a head that classifies every place of the pyramid and moves a box from it."""
