"""Settings of the store: three aliases, eight databases, one project.

``EXAMPLE_SERVERS`` names the servers as JSON, the way a deployment's environment
would; ``python -m example.demo`` starts them and sets it.
"""

from __future__ import annotations

import json
import os

from dbfleet import Cluster, Sharded, databases

SERVERS = json.loads(os.environ["EXAMPLE_SERVERS"])

DATABASES = databases(
    # The catalogue, users and the admin: a primary; reads go to its replicas.
    default=Cluster(SERVERS["catalogue"], replicas=SERVERS["catalogue_replicas"]),
    # Customers and what they bought, spread over three shards.
    sales=Sharded(
        home=SERVERS["sales_home"],
        shards=SERVERS["sales_shards"],
        # SQLite cannot prepare a transaction, so there a write to several files is
        # only allowed because this says so.
        commit="two_phase" if SERVERS["is_postgresql"] else "best_effort",
    ),
    # The old system's file. Nobody may write to it.
    legacy=Cluster(
        {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{SERVERS['legacy']}?mode=ro",
            "OPTIONS": {"uri": True},
        },
        read_only=True,
    ),
)
# One plain database of the same engine, with Django alone: the demo asks it
# everything too, and compares.
DATABASES["single"] = SERVERS["single"]

DATABASE_ROUTERS = ["example.single.SingleRouter", "dbfleet.PlacementRouter"]
DBFLEET = {
    # Apps that one cannot edit are placed here; `sales` says it in its models.
    "PLACEMENT": {
        "admin": "default",
        "auth": "default",
        "catalogue": "default",
        "contenttypes": "default",
        "legacy": "legacy",
        "sessions": "default",
    },
    "POLICY": "dbfleet.policies.RoundRobin",
}
# A customer's email is meant to be unique over all shards, see sales/models.py.
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]

INSTALLED_APPS = [
    "dbfleet",
    "example.catalogue",
    "example.sales",
    "example.legacy",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# The store is open to this machine alone and forgets everything when it closes.
SECRET_KEY = "not a secret: the store lives as long as its process"
DEBUG = os.environ.get("EXAMPLE_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "example.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
