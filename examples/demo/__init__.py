"""The project that the examples run in: settings, the front page, and the command ``demo``."""
