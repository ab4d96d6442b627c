"""Models of every layout, with every kind of unique constraint."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Lower

from dbfleet import LOCAL, REFERENCE


class Country(models.Model):
    """Every node has all of them."""

    code = models.CharField(max_length=5, unique=True)
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"
        shard_key = REFERENCE


class Setting(models.Model):
    """Home's own."""

    name = models.CharField(max_length=20, unique=True)
    number = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"
        shard_key = LOCAL


class Tag(models.Model):
    word = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"


class Customer(models.Model):
    """Sharded by its primary key; ``email`` is unique over all shards."""

    email = models.CharField(max_length=50, unique=True)
    name = models.CharField(max_length=50, blank=True)
    balance = models.IntegerField(default=0)
    country = models.ForeignKey(Country, models.PROTECT, null=True)
    tags = models.ManyToManyField(Tag)

    class Meta:
        app_label = "shop"


class Passport(models.Model):
    """One for each customer, on whatever shard."""

    customer = models.OneToOneField(Customer, models.CASCADE)
    number = models.IntegerField(null=True, unique=True)

    class Meta:
        app_label = "shop"


class Order(models.Model):
    """Lives with its customer, and its lines with it."""

    customer = models.ForeignKey(Customer, models.CASCADE, related_name="orders")
    number = models.IntegerField()
    status = models.CharField(max_length=20, default="new")

    class Meta:
        app_label = "shop"
        shard_key = "customer"
        unique_together = [("customer", "number")]


class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    quantity = models.IntegerField(default=1)

    class Meta:
        app_label = "shop"
        shard_key = "order__customer"


class Visit(models.Model):
    """Refers to rows of other shards."""

    customer = models.ForeignKey(Customer, models.CASCADE, related_name="visits")
    order = models.ForeignKey(Order, models.SET_NULL, null=True)
    guard = models.ForeignKey(
        Customer, models.PROTECT, null=True, related_name="guarded"
    )

    class Meta:
        app_label = "shop"


class Parcel(models.Model):
    """Sharded by a column that may change, and nobody lives with it."""

    region = models.IntegerField()
    code = models.CharField(max_length=20, null=True, unique=True)
    weight = models.IntegerField(default=0)
    data = models.JSONField(default=dict)
    blob = models.BinaryField(default=b"")
    price = models.DecimalField(max_digits=9, decimal_places=3, null=True)
    sent = models.DateTimeField(null=True)

    class Meta:
        app_label = "shop"
        shard_key = "region"


class Depot(models.Model):
    region = models.IntegerField()

    class Meta:
        app_label = "shop"
        shard_key = "region"


class Crate(models.Model):
    """Follows its depot."""

    depot = models.ForeignKey(Depot, models.CASCADE)
    label = models.CharField(max_length=20, unique=True)

    class Meta:
        app_label = "shop"
        shard_key = "depot__region"


class Product(models.Model):
    """Every spelling of a unique constraint."""

    name = models.CharField(max_length=20)
    shelf = models.IntegerField(null=True)
    place = models.IntegerField(null=True)
    is_active = models.BooleanField(default=True)

    class Meta:
        app_label = "shop"
        unique_together = [("shelf", "place")]
        constraints = [
            models.UniqueConstraint(
                fields=["name"],
                condition=models.Q(is_active=True),
                name="one_active_of_a_name",
            ),
        ]


class Alias(models.Model):
    """A unique expression."""

    word = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"
        constraints = [models.UniqueConstraint(Lower("word"), name="one_word")]


class Slot(models.Model):
    """A unique constraint for which NULL equals NULL."""

    day = models.IntegerField(null=True)
    hour = models.IntegerField(null=True)

    class Meta:
        app_label = "shop"
        constraints = [
            models.UniqueConstraint(
                fields=["day", "hour"], nulls_distinct=False, name="one_slot"
            ),
        ]


class Page(models.Model):
    """Sharded by text."""

    slug = models.CharField(max_length=20)
    language = models.CharField(max_length=5)
    title = models.CharField(max_length=20, blank=True)

    class Meta:
        app_label = "shop"
        shard_key = "slug"
        unique_together = [("slug", "language")]


class Rate(models.Model):
    """Sharded by what a server rounds."""

    amount = models.DecimalField(max_digits=6, decimal_places=2)
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"
        shard_key = "amount"


class Reading(models.Model):
    """A composite primary key, sharded by one of its columns."""

    pk = models.CompositePrimaryKey("sensor", "number")
    sensor = models.IntegerField()
    number = models.IntegerField()
    value = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"
        shard_key = "sensor"
