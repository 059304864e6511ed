"""A chat with rooms. Begin with ``consumers.py``; ``frames.py`` says what goes over the wire."""
