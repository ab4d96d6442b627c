"""Rows that live together by a key, rows that do not, and values of every kind."""

from __future__ import annotations

from django.db import models


class Tag(models.Model):
    word = models.CharField(max_length=20)

    class Meta:
        app_label = "merging"


class Owner(models.Model):
    """Sharded by its primary key."""

    name = models.CharField(max_length=40, null=True)
    tags = models.ManyToManyField(Tag)

    class Meta:
        app_label = "merging"


class Item(models.Model):
    """Lives with its owner."""

    owner = models.ForeignKey(Owner, models.CASCADE, related_name="items")
    name = models.CharField(max_length=40, null=True)
    score = models.IntegerField(null=True)
    big = models.BigIntegerField(null=True)
    ratio = models.FloatField(null=True)
    price = models.DecimalField(max_digits=12, decimal_places=3, null=True)
    flag = models.BooleanField(null=True)
    sold = models.DateTimeField(null=True)

    class Meta:
        app_label = "merging"
        shard_key = "owner"


class Note(models.Model):
    """On whatever shard, of owners of other shards."""

    owner = models.ForeignKey(Owner, models.CASCADE, related_name="notes")
    score = models.IntegerField(null=True)
    data = models.JSONField(null=True)

    class Meta:
        app_label = "merging"


class Parcel(models.Model):
    """Its key may change."""

    region = models.IntegerField()
    label = models.CharField(max_length=20)

    class Meta:
        app_label = "merging"
        shard_key = "region"
