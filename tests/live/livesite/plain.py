"""The site as any WSGI server has it, without channels: what speed is compared with."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "livesite.settings")
application = get_wsgi_application()
