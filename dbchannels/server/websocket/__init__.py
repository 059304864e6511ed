"""WebSockets (RFC 6455): from the handshake to the last close frame."""
