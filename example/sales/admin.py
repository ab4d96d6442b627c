"""The counter's pages about sales; Django's admin as ever.

Only this differs from a project on one database: a list does not join a model of
another alias. It leaves the column out, or lets ``prefetch_related`` ask twice.
"""

from __future__ import annotations

from django.contrib import admin

from example.sales.models import Country, Customer, Invoice, InvoiceLine


@admin.register(Country)
class CountryAdmin(admin.ModelAdmin):
    search_fields = ["name"]


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    list_display = ["__str__", "email", "city", "country"]
    list_filter = ["country"]
    list_select_related = ["country"]
    list_per_page = 25
    search_fields = ["first_name", "last_name", "company", "email"]


class InvoiceLineInline(admin.TabularInline):
    model = InvoiceLine
    extra = 0
    raw_id_fields = ["track"]


@admin.register(Invoice)
class InvoiceAdmin(admin.ModelAdmin):
    list_display = ["id", "customer", "date", "billing_country", "total"]
    list_filter = ["billing_country"]
    list_select_related = ["customer", "billing_country"]
    list_per_page = 25
    date_hierarchy = "date"
    search_fields = ["customer__last_name", "customer__email", "billing_city"]
    autocomplete_fields = ["customer"]
    inlines = [InvoiceLineInline]
