"""The Django project that each client process is."""

from __future__ import annotations

from collections.abc import Mapping

SETTINGS = {"WAIT_TIMEOUT_S": 0.02}


def configure(engine: str, urls: Mapping[str, str]) -> None:
    """Set up Django on the cluster; once in a process."""
    import django
    from django.conf import settings

    from dbfleet import Cluster, databases

    if engine != "postgresql":
        import pymysql

        pymysql.install_as_MySQLdb()
    replicas = [url for name, url in urls.items() if name != "primary"]
    entries = databases(default=Cluster(urls["primary"], replicas=replicas))
    entries["default"]["CONN_MAX_AGE"] = None
    entries["default"]["OPTIONS"] = _options(engine)
    settings.configure(
        SECRET_KEY="faults",
        INSTALLED_APPS=["dbfleet", "tests.faults.replicas"],
        DATABASES=entries,
        DBFLEET=SETTINGS,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


def _options(engine: str) -> dict[str, object]:
    """No lock and no connect is waited for long."""
    if engine == "postgresql":
        return {"connect_timeout": 5, "options": "-c lock_timeout=2s"}
    return {
        "connect_timeout": 5,
        "read_timeout": 30,
        "init_command": "SET innodb_lock_wait_timeout = 2",
    }
