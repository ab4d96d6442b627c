"""Orders that live with their customer, and what all of them refer to."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Lower

from dbfleet import LOCAL, REFERENCE


class Region(models.Model):
    name = models.CharField(max_length=30, unique=True)

    class Meta:
        shard_key = REFERENCE


class Setting(models.Model):
    name = models.CharField(max_length=30, unique=True)
    region = models.ForeignKey(Region, null=True, on_delete=models.CASCADE)

    class Meta:
        shard_key = LOCAL


class Customer(models.Model):
    name = models.CharField(max_length=30)
    email = models.CharField(max_length=60, unique=True)
    region = models.ForeignKey(Region, null=True, on_delete=models.CASCADE)


class Tag(models.Model):
    name = models.CharField(max_length=30, unique=True)

    class Meta:
        shard_key = REFERENCE


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    number = models.IntegerField()
    code = models.CharField(max_length=30, unique=True)
    amount = models.DecimalField(max_digits=9, decimal_places=2, default=0)
    note = models.CharField(max_length=60, default="")
    tags = models.ManyToManyField(Tag)

    class Meta:
        shard_key = "customer"
        constraints = [
            models.UniqueConstraint(fields=["customer", "number"], name="depot_number"),
            models.UniqueConstraint(
                Lower("note"), name="depot_note", condition=~models.Q(note="")
            ),
        ]


class Line(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    text = models.CharField(max_length=30)
    count = models.PositiveIntegerField(default=1)

    class Meta:
        shard_key = "customer"
