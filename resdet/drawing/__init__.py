"""Pictures of instances: what is drawn where (`layout.py`), in pixels (`raster.py`) or as SVG and PDF (`vector.py`)."""
