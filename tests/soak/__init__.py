"""The full figures of the faults that dbchannels survives, by one command: ``python -m tests.soak``."""
