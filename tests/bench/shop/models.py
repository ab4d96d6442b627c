"""Two ordinary tables: one that is read by key, one that is summed up."""

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
