"""migm: masked image generation models, several times faster, with almost no loss of quality."""

__version__ = "0.1.0"
