"""Fuzz targets, what drives them, and the corpus that they keep; see targets.py."""
