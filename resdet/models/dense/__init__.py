"""One-stage detectors: dense heads that predict classes and a box at every location of the feature maps."""
