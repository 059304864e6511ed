"""The processes behind ``runchannels`` and ``runserver``: who starts, watches, reloads and ends them."""
