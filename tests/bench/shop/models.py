"""Ordinary tables: one that is read by key, one that is summed up, one that refers to
rows of other shards."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField()
    city = models.CharField(max_length=100)
    credit = models.DecimalField(max_digits=10, decimal_places=2)
    is_active = models.BooleanField(default=True)
    joined_at = models.DateTimeField()

    objects: ClassVar[models.Manager[Customer]] = models.Manager()


class Sale(models.Model):
    product = models.IntegerField()
    quantity = models.IntegerField()
    price = models.DecimalField(max_digits=10, decimal_places=2)

    objects: ClassVar[models.Manager[Sale]] = models.Manager()


class Line(models.Model):
    sale = models.ForeignKey(Sale, models.DO_NOTHING, db_constraint=False)
    amount = models.IntegerField()

    objects: ClassVar[models.Manager[Line]] = models.Manager()
