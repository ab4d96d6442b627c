"""Carriers: how a session gets from a request, a job or a service to the next one.

Guards one invariant: what arrives only ever raises what the running session demands;
nothing that arrives can make it demand less.

:mod:`~dbfleet.carriers.middleware` carries by cookie and header,
:mod:`~dbfleet.carriers.shared` through the cache, :mod:`~dbfleet.carriers.celery` and
``carriers.tasks`` (Django 6.0 and later) with jobs, :mod:`~dbfleet.carriers.headers`
with requests that the project sends. Each is imported where it is used.
"""
