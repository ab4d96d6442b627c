"""Which columns can be lookups: told by the checks, and at the first use."""

from __future__ import annotations

from collections.abc import Callable

from tests.placement.test_checks import errors
from tests.support.project import Project

MODELS = """
class Customer(models.Model):
    email = models.EmailField(unique=True)
    nick = models.CharField(max_length=9)
    day = models.DateField(unique=True)
    city = models.CharField(max_length=9)
    token = models.UUIDField()

    class Meta:
        using = "sales"
        shard_lookups = {lookups}
        constraints = [
            models.UniqueConstraint(fields=["city", "nick"], name="one_nick"),
            models.UniqueConstraint(fields=["token"], name="one_token"),
        ]

class Passport(models.Model):
    customer = models.OneToOneField(Customer, models.CASCADE)

    class Meta:
        using = "sales"
        shard_lookups = ["customer"]

class Note(models.Model):
    text = models.CharField(max_length=9, unique=True)
"""
SETTINGS = 'DBFLEET = {{"PLACEMENT": {{"app.Note": "default"}}, "SHARD_LOOKUPS": {}}}'


def _errors(
    fleet: Callable[..., Project], lookups: object, given: object = ()
) -> list[tuple[str, str]]:
    models = MODELS.format(lookups=repr(lookups))
    return errors(fleet(models, SETTINGS.format(repr(given or {}))))


def test_columns_that_are_unique_by_themselves(fleet: Callable[..., Project]) -> None:
    assert _errors(fleet, ["email", "token"]) == []
    assert _errors(fleet, ["nick"], {"app.Customer": ["email"]}) == []


def test_what_cannot_be_a_lookup_is_told(fleet: Callable[..., Project]) -> None:
    found = _errors(
        fleet,
        ["nick", "day", "none"],
        {"app.Note": ["text"]},
    )
    texts = [text for code, text in found if code == "dbfleet.E111"]
    assert len(texts) == len(found) == 4
    for part in (
        "app.Customer: (dbfleet.E111) its lookup 'nick' of app.Customer is not unique "
        "by itself",
        "its lookup 'day' of app.Customer is a DateField: equal values may be written",
        "its lookup 'none' is no column of the table of app.Customer",
        "app.Note: (dbfleet.E111) DBFLEET['SHARD_LOOKUPS'] names it, but it is not on "
        "a sharded alias",
    ):
        assert any(part in text for text in texts), part


def test_what_is_no_list_of_names_is_told(fleet: Callable[..., Project]) -> None:
    [(code, text)] = _errors(fleet, "email")
    assert code == "dbfleet.E004"
    assert "app.Customer.Meta.shard_lookups" in text
    assert "must be a list of names of fields, not 'email'" in text
    for given, part in (
        ({"app.Customer": "email"}, "must be a list of names of fields"),
        ({"app": ["email"]}, "'app' is an app; name a model"),
        ({"app.Customr": ["email"]}, "app.customr"),
    ):
        assert any(part in text for _, text in _errors(fleet, [], given)), given


def test_a_wrong_lookup_is_refused_when_it_is_used(
    fleet: Callable[..., Project],
) -> None:
    found = fleet(MODELS.format(lookups="['nick']")).run(
        """
from app.models import Customer
from django.db import connections
routing = connections["sales"].routing
try:
    routing.lookup_fields(routing.table_of(Customer._meta))
except Exception as error:
    result = type(error).__name__, error.code, str(error)
"""
    )
    assert found[:2] == ["ConfigurationError", "dbfleet.E111"]
    assert "app.Customer: the lookup 'nick' of app.Customer is not unique" in found[2]


def test_lookups_enter_no_migration(fleet: Callable[..., Project]) -> None:
    found = fleet(MODELS.format(lookups="['email']")).run(
        """
from app.models import Customer
from django.db.migrations.state import ModelState
result = sorted(ModelState.from_model(Customer).options)
"""
    )
    assert "shard_lookups" not in found
