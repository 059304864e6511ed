"""The tests that every channel layer must pass; see ``dbchannels.testing.layers``."""
