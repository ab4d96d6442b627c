"""Customers, invoices and their lines: a customer and all of theirs on one shard.

``Meta.using`` and ``Meta.shard_key`` are all that is said about shards. Neither ends
up in a migration.
"""

from __future__ import annotations

from django.db import models

from dbfleet import REFERENCE


class Country(models.Model):
    """Small, rarely written, joined by everything: every shard has all of it."""

    name = models.CharField(max_length=40, unique=True)

    class Meta:
        using = "sales"
        shard_key = REFERENCE
        ordering = ["name"]
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.name


class Customer(models.Model):
    """Without a shard key, rows are spread by primary key."""

    first_name = models.CharField(max_length=40)
    last_name = models.CharField(max_length=20)
    company = models.CharField(max_length=80, blank=True)
    address = models.CharField(max_length=70, blank=True)
    city = models.CharField(max_length=40, blank=True)
    country = models.ForeignKey(Country, models.PROTECT, related_name="customers")
    postal_code = models.CharField(max_length=10, blank=True)
    phone = models.CharField(max_length=24, blank=True)
    # Unique over all shards: each address is claimed in home by the writer.
    email = models.EmailField(max_length=60, unique=True)
    # On another alias, where no database can check it nor cascade from it.
    support_rep = models.ForeignKey(
        "catalogue.Employee",
        models.DO_NOTHING,
        null=True,
        blank=True,
        related_name="customers",
    )

    class Meta:
        using = "sales"
        # Home knows the claims, so it can tell the shard of an address as well.
        shard_lookups = ["email"]
        ordering = ["last_name", "first_name", "pk"]

    def __str__(self) -> str:
        return f"{self.first_name} {self.last_name}"


class Invoice(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE, related_name="invoices")
    date = models.DateTimeField()
    billing_city = models.CharField(max_length=40, blank=True)
    billing_country = models.ForeignKey(
        Country, models.PROTECT, related_name="invoices"
    )
    total = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        using = "sales"
        shard_key = "customer"
        ordering = ["-date", "-pk"]

    def __str__(self) -> str:
        return f"{self.pk} of {self.date:%Y-%m-%d}"


class InvoiceLine(models.Model):
    invoice = models.ForeignKey(Invoice, models.CASCADE, related_name="lines")
    track = models.ForeignKey(
        "catalogue.Track", models.DO_NOTHING, related_name="invoice_lines"
    )
    unit_price = models.DecimalField(max_digits=10, decimal_places=2)
    quantity = models.PositiveIntegerField()

    class Meta:
        using = "sales"
        # A line has no customer of its own: it lives where its invoice lives.
        shard_key = "invoice__customer"
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"track {self.track_id}"
