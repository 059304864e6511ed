"""A WSGI application that is wrapped, as in production."""

import os

from whitenoise import WhiteNoise

from dbchannels.wsgi import get_wsgi_application


class Copying:
    """Hands on a copy of the environ, and an iterable of its own."""

    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        result = self.application({**environ}, start_response)
        try:
            yield from result
        finally:
            result.close()


application = Copying(
    WhiteNoise(get_wsgi_application(), root=os.environ["LIVESITE_FOLDER"] + "/files", prefix="files/")
)
