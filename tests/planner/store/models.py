"""One model for each way a table may lie on a sharded alias."""

from __future__ import annotations

from django.db import models

from dbfleet import LOCAL, REFERENCE


class Country(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "planner_store"
        shard_key = REFERENCE


class Setting(models.Model):
    name = models.CharField(max_length=20)
    number = models.IntegerField()

    class Meta:
        app_label = "planner_store"
        shard_key = LOCAL


class Customer(models.Model):
    """Sharded by its primary key, as nothing says otherwise."""

    name = models.CharField(max_length=20)
    age = models.IntegerField(null=True)
    country = models.ForeignKey(Country, models.CASCADE, related_name="customers")
    referrer = models.ForeignKey("self", models.SET_NULL, null=True)

    class Meta:
        app_label = "planner_store"


class Order(models.Model):
    """Lives with its customer."""

    customer = models.ForeignKey(Customer, models.CASCADE, related_name="orders")
    status = models.CharField(max_length=20, null=True)
    total = models.IntegerField()

    class Meta:
        app_label = "planner_store"
        shard_key = "customer"


class Line(models.Model):
    """Lives with its order, whose customer it does not know itself."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    quantity = models.IntegerField(null=True)

    class Meta:
        app_label = "planner_store"
        shard_key = "order__customer"


class Coupon(models.Model):
    """Refers to rows of other shards, or to none."""

    customer = models.ForeignKey(
        Customer, models.CASCADE, null=True, related_name="coupons"
    )
    order = models.ForeignKey(Order, models.CASCADE, null=True, related_name="coupons")
    percent = models.IntegerField(null=True)

    class Meta:
        app_label = "planner_store"


class Page(models.Model):
    """Sharded by text."""

    slug = models.CharField(max_length=20)
    title = models.CharField(max_length=20)

    class Meta:
        app_label = "planner_store"
        shard_key = "slug"
        unique_together = [("slug", "title")]


class Reading(models.Model):
    """Sharded by both columns of a composite primary key."""

    pk = models.CompositePrimaryKey("sensor", "number")
    sensor = models.IntegerField()
    number = models.IntegerField()
    value = models.IntegerField(null=True)

    class Meta:
        app_label = "planner_store"
