"""Commands that look at a database: inspectdb, dbshell, check, the admin's pages."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from tests.management.conftest import FleetProject

pytestmark = pytest.mark.timeout(300)

#: Stands for a client of a database: says how it was called.
CLIENT = """\
#!/bin/sh
{python} - "$@" <<'END'
import json, os, sys
names = ("PGPASSWORD", "PGSERVICE", "MYSQL_PWD")
passed = {{n: os.environ[n] for n in names if n in os.environ}}
seen = dict(args=sys.argv[1:], env=passed)
open(os.environ["CALLED"], "w").write(json.dumps(seen))
END
"""
CLIENTS = {"postgresql": "psql", "mariadb": "mysql", "sqlite": "sqlite3"}


def test_inspectdb_shows_the_users_tables(fleet: FleetProject) -> None:
    source = fleet.project.manage("inspectdb").stdout
    assert "class AppArticle(" in source
    assert "class AuthUser(" in source
    assert "dbfleet" not in source.lower()
    compile(source, "models.py", "exec")
    one = fleet.project.manage("inspectdb", "app_tag").stdout
    assert "word = models.CharField(" in one
    assert "AppArticle" not in one


def test_check_database(fleet: FleetProject) -> None:
    finished = fleet.project.manage("check", "--database", "default")
    codes = set(re.findall(r"dbfleet\.\w+|\w+\.[EW]\d+", finished.stderr))
    # what a unique constraint over shards costs is said once, as a warning
    assert codes == ({"dbfleet.W105"} if fleet.is_sharded else set())
    fleet.project.manage("check", "--database", "default", "--fail-level", "ERROR")


def test_dbshell_opens_home(fleet: FleetProject) -> None:
    directory = fleet.project.root / "clients"
    directory.mkdir(exist_ok=True)
    client = directory / CLIENTS[fleet.engine]
    client.write_text(CLIENT.format(python=sys.executable))
    client.chmod(0o755)
    called = fleet.project.root / "called.json"
    fleet.project.manage(
        "dbshell",
        "--",
        "--one-more",
        env={
            "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}",
            "CALLED": str(called),
        },
    )
    seen = json.loads(called.read_text())
    assert "--one-more" in seen["args"]
    assert any(fleet.names["home"] in argument for argument in seen["args"])
    for cluster, name in fleet.names.items():
        if cluster != "home":
            assert not any(name in argument for argument in seen["args"]), cluster


def test_admin_pages(fleet: FleetProject) -> None:
    fleet.call("flush", interactive=False, verbosity=0)
    found = fleet.project.run(
        """
        from app.models import Article, Author, Tag
        from django.contrib.admin.models import LogEntry
        from django.contrib.auth.models import User
        from django.test import Client
        from django.test.utils import setup_test_environment

        setup_test_environment()
        User.objects.create_superuser("root", password="x")
        client = Client()
        result = {"login": client.post(
            "/admin/login/?next=/admin/", {"username": "root", "password": "x"}
        ).status_code}
        names = [f"Author {n:02}" for n in range(30)]
        for name in names:
            client.post("/admin/app/author/add/", {
                "name": name, "article_set-TOTAL_FORMS": 0,
                "article_set-INITIAL_FORMS": 0,
            })
        tag = Tag.objects.create(word="news")
        author = Author.objects.get(name="Author 03")
        double = client.post("/admin/app/author/add/", {
            "name": "Author 03", "article_set-TOTAL_FORMS": 0,
            "article_set-INITIAL_FORMS": 0,
        })
        result["double"] = "already exists" in double.content.decode()
        client.post("/admin/app/article/add/", {
            "title": "First", "author": author.pk, "tags": [tag.pk],
        })
        article = Article.objects.get()
        result["article"] = [article.author.name, [t.word for t in article.tags.all()]]
        url = f"/admin/app/author/{author.pk}/change/"
        client.post(url, {
            "name": "Changed",
            "article_set-TOTAL_FORMS": 1, "article_set-INITIAL_FORMS": 1,
            "article_set-0-id": article.pk, "article_set-0-author": author.pk,
            "article_set-0-title": "Second", "article_set-0-tags": [tag.pk],
        })
        article.refresh_from_db()
        result["changed"] = [article.title, Author.objects.get(pk=author.pk).name]
        pages = {
            "list": "/admin/app/author/?q=%22Author+1%22&o=-1",
            "filtered": f"/admin/app/article/?author__id__exact={author.pk}",
            "history": f"/admin/app/author/{author.pk}/history/",
            "delete": f"/admin/app/author/{author.pk}/delete/",
            "users": "/admin/auth/user/",
            "index": "/admin/",
        }
        result["pages"] = {k: client.get(v).status_code for k, v in pages.items()}
        listed = client.get("/admin/app/author/?q=%22Author+1%22&o=-1").context["cl"]
        result["listed"] = [a.name for a in listed.result_list]
        client.post("/admin/app/author/", {
            "action": "delete_selected", "post": "yes",
            "_selected_action": [author.pk, Author.objects.get(name="Author 07").pk],
        })
        result["left"] = [Author.objects.count(), Article.objects.count()]
        result["log"] = LogEntry.objects.count()
        """
    )
    assert found == {
        "login": 302,
        "double": True,
        "article": ["Author 03", ["news"]],
        "changed": ["Second", "Changed"],
        "pages": dict.fromkeys(
            ("list", "filtered", "history", "delete", "users", "index"), 200
        ),
        "listed": [f"Author {n}" for n in range(19, 9, -1)],
        "left": [28, 0],
        "log": 30 + 1 + 1 + 2,
    }
