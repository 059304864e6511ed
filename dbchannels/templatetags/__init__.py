"""The template tags of dbchannels."""
