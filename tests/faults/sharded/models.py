"""What the clients of a run write; every row says which operation it is of."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models


class Account(models.Model):
    """Money on some shard; the sum over all accounts never changes."""

    id = models.IntegerField(primary_key=True)
    balance = models.IntegerField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "sharded"


class Entry(models.Model):
    """One side of a transfer, on its account's shard."""

    account = models.IntegerField()
    operation = models.IntegerField()
    amount = models.IntegerField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "sharded"


class Slip(models.Model):
    """A transfer's row in home."""

    operation = models.IntegerField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "sharded"


class Person(models.Model):
    """Its email is unique over all shards."""

    operation = models.IntegerField(primary_key=True)
    email = models.CharField(max_length=50, unique=True)

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "sharded"


class Register(models.Model):
    """The last operation of each client that it wrote and read again."""

    client = models.IntegerField(primary_key=True)
    operation = models.IntegerField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "sharded"
