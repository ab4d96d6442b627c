"""A small old system: an SQLite file with the tables of the Chinook sample database.

Guards one invariant: the same rows every time, so that two runs can be compared.
Every name is made up of words; nobody is meant.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

Row = tuple[Any, ...]

SEED = 1871
ALBUMS, CUSTOMERS, INVOICES = 90, 60, 420
FIRST_DAY = datetime(2021, 1, 1)

SCHEMA = """
CREATE TABLE Artist (ArtistId INTEGER PRIMARY KEY, Name NVARCHAR(120));
CREATE TABLE Album (AlbumId INTEGER PRIMARY KEY, Title NVARCHAR(160) NOT NULL,
    ArtistId INTEGER NOT NULL REFERENCES Artist (ArtistId));
CREATE TABLE Genre (GenreId INTEGER PRIMARY KEY, Name NVARCHAR(120));
CREATE TABLE MediaType (MediaTypeId INTEGER PRIMARY KEY, Name NVARCHAR(120));
CREATE TABLE Track (TrackId INTEGER PRIMARY KEY, Name NVARCHAR(200) NOT NULL,
    AlbumId INTEGER REFERENCES Album (AlbumId),
    MediaTypeId INTEGER NOT NULL REFERENCES MediaType (MediaTypeId),
    GenreId INTEGER REFERENCES Genre (GenreId), Composer NVARCHAR(220),
    Milliseconds INTEGER NOT NULL, Bytes INTEGER, UnitPrice NUMERIC(10,2) NOT NULL);
CREATE TABLE Playlist (PlaylistId INTEGER PRIMARY KEY, Name NVARCHAR(120));
CREATE TABLE PlaylistTrack (
    PlaylistId INTEGER NOT NULL REFERENCES Playlist (PlaylistId),
    TrackId INTEGER NOT NULL REFERENCES Track (TrackId),
    PRIMARY KEY (PlaylistId, TrackId));
CREATE TABLE Employee (EmployeeId INTEGER PRIMARY KEY, LastName NVARCHAR(20) NOT NULL,
    FirstName NVARCHAR(20) NOT NULL, Title NVARCHAR(30),
    ReportsTo INTEGER REFERENCES Employee (EmployeeId), BirthDate DATETIME,
    HireDate DATETIME, Address NVARCHAR(70), City NVARCHAR(40), State NVARCHAR(40),
    Country NVARCHAR(40), PostalCode NVARCHAR(10), Phone NVARCHAR(24),
    Fax NVARCHAR(24), Email NVARCHAR(60));
CREATE TABLE Customer (CustomerId INTEGER PRIMARY KEY, FirstName NVARCHAR(40) NOT NULL,
    LastName NVARCHAR(20) NOT NULL, Company NVARCHAR(80), Address NVARCHAR(70),
    City NVARCHAR(40), State NVARCHAR(40), Country NVARCHAR(40),
    PostalCode NVARCHAR(10), Phone NVARCHAR(24), Fax NVARCHAR(24),
    Email NVARCHAR(60) NOT NULL, SupportRepId INTEGER REFERENCES Employee (EmployeeId));
CREATE TABLE Invoice (InvoiceId INTEGER PRIMARY KEY,
    CustomerId INTEGER NOT NULL REFERENCES Customer (CustomerId),
    InvoiceDate DATETIME NOT NULL, BillingAddress NVARCHAR(70),
    BillingCity NVARCHAR(40), BillingState NVARCHAR(40), BillingCountry NVARCHAR(40),
    BillingPostalCode NVARCHAR(10), Total NUMERIC(10,2) NOT NULL);
CREATE TABLE InvoiceLine (InvoiceLineId INTEGER PRIMARY KEY,
    InvoiceId INTEGER NOT NULL REFERENCES Invoice (InvoiceId),
    TrackId INTEGER NOT NULL REFERENCES Track (TrackId),
    UnitPrice NUMERIC(10,2) NOT NULL, Quantity INTEGER NOT NULL);
"""

COLOURS = ["Amber", "Azure", "Copper", "Crimson", "Golden", "Ivory", "Silver", "Violet"]
BANDS = ["Lanterns", "Rivers", "Sparrows", "Engines", "Harbours"]
MOODS = ["Blue", "Broken", "Distant", "Endless", "Electric", "Gentle", "Hidden", "Late"]
THINGS = ["Circle", "Dream", "Fire", "Garden", "Heart", "Letter", "Love", "Moon"]
THINGS += ["Rain", "Road", "Song", "Storm"]
PLACES = ["", " in May", " of the North", " Tonight", " by the Sea", " (Live)"]
GENRES = ["Rock", "Jazz", "Blues", "Classical", "Latin", "Pop", "Reggae", "Soundtrack"]
MEDIA = ["MPEG audio file", "AAC audio file", "Lossless audio file"]
# Words of a spelling alphabet and of a score, so that no name is anybody's.
FIRST = ["Alfa", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel"]
FIRST += ["India", "Juliett", "Kilo", "Lima"]
LAST = ["Adagio", "Allegro", "Andante", "Largo", "Presto"]
STAFF = [
    ("Tempo", "Chief", "General Manager", None),
    ("Chord", "Major", "Sales Manager", 1),
    ("Chord", "Minor", "Sales Support Agent", 2),
    ("Rest", "Half", "Sales Support Agent", 2),
    ("Rest", "Quarter", "Sales Support Agent", 2),
    ("Scale", "Whole", "IT Manager", 1),
    ("Note", "Grace", "IT Staff", 6),
    ("Note", "Sharp", "IT Staff", 6),
]
CITIES = [
    ("Berlin", "Germany"),
    ("Paris", "France"),
    ("Lyon", "France"),
    ("Oslo", "Norway"),
    ("Prague", "Czech Republic"),
    ("Ottawa", "Canada"),
    ("Boston", "USA"),
    ("Chicago", "USA"),
    ("Santiago", "Chile"),
    ("São Paulo", "Brazil"),
    ("Delhi", "India"),
    ("Dublin", "Ireland"),
]


def make_sample(path: Path) -> None:
    """Write the file; raises ``sqlite3.Error`` if it exists already."""
    dice = random.Random(SEED)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        prices = _fill_catalogue(connection, dice)
        _fill_people(connection, dice)
        _fill_invoices(connection, dice, prices)


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)


def _fill_catalogue(connection: sqlite3.Connection, dice: random.Random) -> list[float]:
    """Fill in what is sold; returns the price of each track, by id from 1."""
    artists = [f"The {colour} {band}" for band in BANDS for colour in COLOURS]
    titles = itertools.cycle(dice.sample(list(itertools.product(MOODS, THINGS)), 96))
    albums = [
        (number, " ".join(next(titles)), dice.randint(1, len(artists)))
        for number in range(1, ALBUMS + 1)
    ]
    tracks: list[Row] = []
    for album, _, artist in albums:
        for _ in range(dice.randint(5, 12)):
            name = " ".join(next(titles)) + dice.choice(PLACES)
            genre = 1 + artist % len(GENRES)
            length = dice.randint(120_000, 420_000)
            composer = dice.choice([None, f"{artists[artist - 1]}, traditional"])
            price = dice.choice([0.99, 0.99, 1.99])
            number, media = len(tracks) + 1, dice.randint(1, len(MEDIA))
            track = (number, name, album, media, genre, composer, length, length * 33)
            tracks.append((*track, price))
    named = [(number, name) for number, name in enumerate(artists, 1)]
    _insert(connection, "Artist", named)
    _insert(connection, "Genre", enumerate(GENRES, 1))
    _insert(connection, "MediaType", enumerate(MEDIA, 1))
    _insert(connection, "Album", albums)
    _insert(connection, "Track", tracks)
    for number, mood in enumerate(MOODS, 1):
        _insert(connection, "Playlist", [(number, f"{mood} evening")])
        chosen = sorted(dice.sample(range(1, len(tracks) + 1), 20 * number))
        _insert(connection, "PlaylistTrack", ((number, track) for track in chosen))
    return [track[-1] for track in tracks]


def _fill_people(connection: sqlite3.Connection, dice: random.Random) -> None:
    for number, (last, first, title, boss) in enumerate(STAFF, 1):
        hired = FIRST_DAY - timedelta(days=365 * (10 - number))
        email = f"{first}.{last}@example.com".lower()
        person: Row = (number, last, first, title, boss, None, str(hired))
        address: Row = (None, "Ottawa", None, "Canada", None, None, None, email)
        _insert(connection, "Employee", [(*person, *address)])
    names = itertools.product(LAST, FIRST)
    for number, (last, first) in enumerate(itertools.islice(names, CUSTOMERS), 1):
        city, country = dice.choice(CITIES)
        company = f"{last} Records" if number % 5 == 0 else None
        email = f"{first}.{last}@example.com".lower()
        street, code = f"{number} Harmony Street", f"{10_000 + number}"
        person = (number, first, last, company)
        address = (street, city, None, country, code, None, None, email)
        agent = dice.randint(3, 5)
        _insert(connection, "Customer", [(*person, *address, agent)])


def _fill_invoices(
    connection: sqlite3.Connection, dice: random.Random, prices: list[float]
) -> None:
    columns = "CustomerId, Address, City, State, Country, PostalCode"
    people = connection.execute(f"SELECT {columns} FROM Customer").fetchall()
    places = {customer: place for customer, *place in people}
    line = itertools.count(1)
    for number in range(1, INVOICES + 1):
        customer = dice.randint(1, CUSTOMERS)
        day = FIRST_DAY + timedelta(days=number * 4, hours=dice.randint(0, 23))
        bought = dice.sample(range(1, len(prices) + 1), dice.randint(1, 9))
        total = round(sum(prices[track - 1] for track in bought), 2)
        invoice = (number, customer, str(day), *places[customer], total)
        _insert(connection, "Invoice", [invoice])
        lines = [(next(line), number, track, prices[track - 1], 1) for track in bought]
        _insert(connection, "InvoiceLine", lines)
