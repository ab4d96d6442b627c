"""The admin, visited by Django's test client on the fleet and on one database."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth import get_user_model
from django.forms.models import model_to_dict
from django.test import Client
from django.urls import reverse

from example.sales.models import Customer, Invoice
from example.single import is_on_single

CSRF_TOKEN = re.compile(r'(name="csrfmiddlewaretoken" value=")\w+')


class Page(str):
    """A page's HTML, without the token that is new each time."""

    __slots__ = ()


_clients: dict[bool, Client] = {}


def open_counter(password: str) -> None:
    """Create the user ``admin`` and log in; inside ``on_single()`` there."""
    users = get_user_model().objects
    user = users.create_superuser("admin", "admin@example.com", password)
    client = _clients[is_on_single()] = Client()
    client.force_login(user)


def get(url: str) -> Page:
    """A page of the admin; raises ``AssertionError`` unless it is shown."""
    response = _clients[is_on_single()].get(url)
    return _page(response)


def post(url: str, data: dict[str, Any]) -> Page:
    """The page that follows a form; raises ``AssertionError`` if it is refused."""
    response = _clients[is_on_single()].post(url, data, follow=True)
    assert response.redirect_chain, f"{url} did not accept the form"
    return _page(response)


def _page(response: Any) -> Page:
    assert response.status_code == 200, f"status {response.status_code}"
    return Page(CSRF_TOKEN.sub(r"\1", response.content.decode()))


def pages(customer: int, invoice: int) -> dict[str, str]:
    """Title -> address of the pages that are compared."""
    changed = reverse("admin:sales_invoice_change", args=[invoice])
    deleted = reverse("admin:sales_customer_delete", args=[customer])
    return {
        "front page": reverse("admin:index"),
        "artists, by number of albums": reverse("admin:catalogue_artist_changelist")
        + "?o=-2.1",
        "tracks, searched and filtered": reverse("admin:catalogue_track_changelist")
        + "?q=the&genre__id__exact=1",
        "customers, searched": reverse("admin:sales_customer_changelist") + "?q=a&o=2",
        "orders, page 3, with the date drill-down": reverse(
            "admin:sales_invoice_changelist"
        )
        + "?p=3",
        "orders of a country and a year": reverse("admin:sales_invoice_changelist")
        + "?billing_country__id__exact=1&date__year=2022",
        "an order with its lines": changed,
        "what deleting a customer would delete": deleted,
    }


def edit_customer(customer: int) -> Page:
    """Change a telephone number by the admin's form."""
    values = model_to_dict(Customer.objects.get(pk=customer))
    data = {name: value for name, value in values.items() if value is not None}
    data["phone"] = "+49 30 1234567"
    return post(reverse("admin:sales_customer_change", args=[customer]), data)


def add_order(customer: int, track: int) -> Page:
    """Enter an order with two lines by the admin's form."""
    country = Customer.objects.get(pk=customer).country_id
    data = {
        "customer": customer,
        "date_0": "2026-01-02",
        "date_1": "12:00:00",
        "billing_city": "Berlin",
        "billing_country": country,
        "total": "2.98",
        "lines-TOTAL_FORMS": 2,
        "lines-INITIAL_FORMS": 0,
    }
    for number, price in enumerate(("0.99", "1.99")):
        data |= {
            f"lines-{number}-track": track + number,
            f"lines-{number}-unit_price": price,
            f"lines-{number}-quantity": 1,
        }
    return post(
        reverse(f"admin:{Invoice._meta.label_lower.replace('.', '_')}_add"), data
    )
