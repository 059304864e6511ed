"""A WSGI application that is none of Django's, for WSGI_APPLICATION."""


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the site's own"]
