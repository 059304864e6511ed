"""The management commands of dbchannels."""
