"""The interface server: it holds the sockets, and turns requests and frames into messages and back."""
