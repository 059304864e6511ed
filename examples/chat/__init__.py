"""A chat with rooms. Start with ``consumers.py``; ``frames.py`` describes the frames."""
