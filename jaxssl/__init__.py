"""jaxssl: find out what a self-supervised method relies on."""

__version__ = "0.1.0"
