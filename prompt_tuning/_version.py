"""The version, for `setup.py`, cards and whoever asks."""

__version__ = "0.1.0"
