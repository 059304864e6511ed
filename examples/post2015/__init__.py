"""The chat server of the 2015 post "Beyond Request-Response", on dbchannels."""
