"""What every channel layer has to do, as test cases; see ``dbchannels.testing.layers``."""
