"""HTTP/1.1: from the socket to an ``http.request`` message, and from the reply to the socket."""
