"""For a WSGI server; LIVESITE_GATEWAY (JSON) has the options that a test wants."""

import json
import os

from dbchannels.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "livesite.settings")
application = get_wsgi_application(**json.loads(os.environ.get("LIVESITE_GATEWAY", "{}")))
