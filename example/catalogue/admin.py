"""The counter's pages about the catalogue; Django's admin as ever."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count
from django.http import HttpRequest

from example.catalogue.models import (
    Album,
    Artist,
    Employee,
    Genre,
    MediaType,
    Playlist,
    Track,
)

admin.site.register([Genre, MediaType])


class AlbumInline(admin.TabularInline):
    model = Album
    extra = 0
    show_change_link = True


@admin.register(Artist)
class ArtistAdmin(admin.ModelAdmin):
    list_display = ["name", "albums"]
    search_fields = ["name"]
    inlines = [AlbumInline]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).annotate(number=Count("albums"))

    @admin.display(ordering="number")
    def albums(self, artist: Any) -> Any:
        return artist.number


@admin.register(Album)
class AlbumAdmin(admin.ModelAdmin):
    list_display = ["title", "artist"]
    list_select_related = ["artist"]
    search_fields = ["title", "artist__name"]
    autocomplete_fields = ["artist"]


@admin.register(Track)
class TrackAdmin(admin.ModelAdmin):
    list_display = ["name", "album", "genre", "unit_price"]
    list_filter = ["genre", "media_type"]
    list_select_related = ["album", "genre"]
    list_per_page = 50
    search_fields = ["name", "album__title", "composer"]
    autocomplete_fields = ["album"]


@admin.register(Playlist)
class PlaylistAdmin(admin.ModelAdmin):
    search_fields = ["name"]
    autocomplete_fields = ["tracks"]


@admin.register(Employee)
class EmployeeAdmin(admin.ModelAdmin):
    list_display = ["__str__", "title", "reports_to"]
    list_select_related = ["reports_to"]
    search_fields = ["first_name", "last_name"]
