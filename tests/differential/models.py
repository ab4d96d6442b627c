"""Models of every layout: sharded by pk, by a foreign key, through one; reference,
local; with what tends to break: NULLs, collations, decimals, JSON, time zones.
"""

from __future__ import annotations

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models

from dbfleet import LOCAL, REFERENCE


class Country(models.Model):
    code = models.CharField(max_length=8, primary_key=True)
    name = models.CharField(max_length=60)
    population = models.BigIntegerField(null=True)

    class Meta:
        app_label = "differential"
        shard_key = REFERENCE


class Setting(models.Model):
    key = models.CharField(max_length=40, unique=True)
    value = models.TextField(blank=True)
    number = models.IntegerField(null=True)
    country = models.ForeignKey(Country, models.SET_NULL, null=True)

    class Meta:
        app_label = "differential"
        shard_key = LOCAL


class Tag(models.Model):
    name = models.CharField(max_length=60, unique=True)
    weight = models.IntegerField(default=0)
    comments = GenericRelation("differential.Comment", related_query_name="tag")

    class Meta:
        app_label = "differential"


class Category(models.Model):
    slug = models.CharField(max_length=60, unique=True)
    title = models.CharField(max_length=60, blank=True)
    position = models.IntegerField(null=True)
    parent = models.ForeignKey(
        "self", models.CASCADE, null=True, related_name="children"
    )

    class Meta:
        app_label = "differential"
        ordering = ["position", "slug"]


class Product(models.Model):
    id = models.UUIDField(primary_key=True)
    sku = models.CharField(max_length=40, unique=True)
    title = models.CharField(max_length=80)
    price = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    mass = models.FloatField(null=True)
    released = models.DateField(null=True)
    added = models.DateTimeField()
    attributes = models.JSONField(null=True)
    is_active = models.BooleanField(default=True)
    category = models.ForeignKey(
        Category, models.SET_NULL, null=True, related_name="products"
    )
    tags = models.ManyToManyField(Tag, related_name="products")

    class Meta:
        app_label = "differential"


class Customer(models.Model):
    id = models.IntegerField(primary_key=True)
    name = models.CharField(max_length=60)
    email = models.CharField(max_length=60, unique=True, null=True)
    note = models.TextField(blank=True)
    country = models.ForeignKey(
        Country, models.CASCADE, null=True, related_name="customers"
    )
    referrer = models.ForeignKey(
        "self", models.SET_NULL, null=True, related_name="referred"
    )
    balance = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    score = models.FloatField(null=True)
    is_vip = models.BooleanField(null=True)
    joined = models.DateTimeField(null=True)
    birthday = models.DateField(null=True)
    favorites = models.ManyToManyField(Product, related_name="fans")
    comments = GenericRelation("differential.Comment", related_query_name="customer")

    class Meta:
        app_label = "differential"


class Profile(models.Model):
    customer = models.OneToOneField(Customer, models.CASCADE, primary_key=True)
    biography = models.TextField(blank=True)
    wakes_at = models.TimeField(null=True)
    patience = models.DurationField(null=True)

    class Meta:
        app_label = "differential"


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE, related_name="orders")
    number = models.IntegerField()
    status = models.CharField(max_length=10)
    total = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    placed = models.DateTimeField()
    is_paid = models.BooleanField(null=True)
    ship_to = models.ForeignKey(
        Country, models.SET_NULL, null=True, related_name="orders"
    )

    class Meta:
        app_label = "differential"
        shard_key = "customer"
        constraints = [
            models.UniqueConstraint(
                fields=["customer", "number"], name="differential_order_number"
            )
        ]


class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.CASCADE, related_name="lines")
    position = models.IntegerField()
    quantity = models.IntegerField(default=1)
    price = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    options = models.JSONField(null=True)

    class Meta:
        app_label = "differential"
        shard_key = "order__customer"
        unique_together = [("order", "position")]


class Place(models.Model):
    name = models.CharField(max_length=60)
    rating = models.IntegerField(null=True)
    country = models.ForeignKey(
        Country, models.CASCADE, null=True, related_name="places"
    )

    class Meta:
        app_label = "differential"


class Shop(Place):
    opened = models.DateField(null=True)
    code = models.CharField(max_length=20, unique=True)
    manager = models.OneToOneField(
        Customer, models.SET_NULL, null=True, related_name="shop"
    )
    products = models.ManyToManyField(Product, through="Stock", related_name="shops")

    class Meta:
        app_label = "differential"


class Stock(models.Model):
    shop = models.ForeignKey(Shop, models.CASCADE, related_name="stocks")
    product = models.ForeignKey(Product, models.CASCADE, related_name="stocks")
    quantity = models.IntegerField(null=True)
    cost = models.DecimalField(max_digits=14, decimal_places=4, null=True)

    class Meta:
        app_label = "differential"
        unique_together = [("shop", "product")]


class Comment(models.Model):
    text = models.TextField()
    author = models.ForeignKey(
        Customer, models.SET_NULL, null=True, related_name="written"
    )
    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.IntegerField()
    about = GenericForeignKey()

    class Meta:
        app_label = "differential"
