"""The checks of ``channels_doctor`` that need no database: the settings, and the limits of this host."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from django.conf import settings
from django.core import checks

from dbchannels.checks import site as site_checks
from dbchannels.management.doctor.patient import NOTE, OK, WRONG, Finding, Patient
from dbchannels.management.output import counted
from dbchannels.server.connection_limits import RESERVED


def system_checks(patient: Patient) -> Iterator[Finding]:
    """Count the errors of ``manage.py check``."""
    errors = [one for one in checks.run_checks() if one.is_serious() and not one.is_silenced()]
    if errors:
        yield Finding(
            WRONG, f"'manage.py check' finds {counted(len(errors), 'error')}: run it, and correct them."
        )
    else:
        yield Finding(OK, "'manage.py check' finds no error.")


def debug(patient: Patient) -> Iterator[Finding]:
    """DEBUG shows the site's source to strangers."""
    if settings.DEBUG:
        yield Finding(
            WRONG, "DEBUG is True: set it to False in production, or errors show the site's code to anybody."
        )
    else:
        yield Finding(OK, "DEBUG is False.")


def secret_key(patient: Patient) -> Iterator[Finding]:
    """A weak key lets others forge sessions. The key itself is never shown."""
    key = str(settings.SECRET_KEY)
    if key.startswith("django-insecure-"):
        yield Finding(
            WRONG,
            "SECRET_KEY is the one that startproject has written: make a new one, and keep it out of git.",
        )
    elif len(key) < 50 or len(set(key)) < 5:
        yield Finding(WRONG, "SECRET_KEY is short: make one of at least 50 random characters.")
    else:
        yield Finding(OK, "SECRET_KEY is long enough.")


def hosts(patient: Patient) -> Iterator[Finding]:
    """ALLOWED_HOSTS, and the origins beside it."""
    found = site_checks.check_hosts(None)
    for one in found:
        yield Finding(WRONG, f"{one.msg} {one.hint}")
    bad = [one for one in settings.CSRF_TRUSTED_ORIGINS if "://" not in one]
    if bad:
        yield Finding(
            WRONG, f"CSRF_TRUSTED_ORIGINS has {bad[0]!r} without a scheme: write 'https://{bad[0]}'."
        )
    if not found and not bad:
        allowed = ", ".join(settings.ALLOWED_HOSTS) or "the names of this machine"
        origins = ", ".join(settings.CSRF_TRUSTED_ORIGINS) or "none"
        yield Finding(OK, f"ALLOWED_HOSTS: {allowed}. Other origins that are trusted: {origins}.")


def proxy(patient: Patient) -> Iterator[Finding]:
    """Whether Django believes a header that --proxy-headers takes care of."""
    given = [
        name
        for name in ("SECURE_PROXY_SSL_HEADER", "USE_X_FORWARDED_HOST", "USE_X_FORWARDED_PORT")
        if getattr(settings, name)
    ]
    if given:
        yield Finding(
            NOTE,
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set: with runchannels --proxy-headers, remove "
            "them, because the server reads these headers of trusted proxies alone; without, the proxy must overwrite "
            "them.",
        )
    elif settings.SECURE_SSL_REDIRECT:
        yield Finding(
            NOTE,
            "SECURE_SSL_REDIRECT is on: behind a proxy start runchannels with --proxy-headers, or it redirects for "
            "ever.",
        )
    else:
        yield Finding(
            OK,
            "No setting believes the headers of a proxy: start runchannels with --proxy-headers behind one.",
        )


def sessions(patient: Patient) -> Iterator[Finding]:
    """Whether all workers see the same sessions."""
    found = site_checks.check_sessions(None)
    for one in found:
        yield Finding(WRONG, f"{one.msg} {one.hint}")
    if not found:
        yield Finding(
            OK, f"Sessions are kept by {settings.SESSION_ENGINE}, which all workers of a host share."
        )


def descriptors(patient: Patient) -> Iterator[Finding]:
    """Whether a server started like this command could open all its connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = patient.max_connections
    if hard == resource.RLIM_INFINITY or hard - RESERVED >= wanted:
        yield Finding(OK, f"The limit of open files is enough for {wanted:,} connections.")
    else:
        yield Finding(
            WRONG,
            f"The limit of open files, {hard:,}, is enough for {max(1, hard - RESERVED):,} connections and not for "
            f"{wanted:,}: raise it (LimitNOFILE= in systemd, ulimit -n), or lower --max-connections.",
        )
