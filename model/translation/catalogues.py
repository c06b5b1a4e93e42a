"""Message catalogues as parallel text: English messages of programs with their translations, as packages carry them.

Either the packages that are installed, or a folder of wheels as `pip download --no-deps` leaves it: read where they lie, never
installed, never unpacked.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import polib

from model.translation.parallel_text import Pair, ParallelTextError


@dataclass(frozen=True, slots=True)
class CatalogueUse:
    """What one package gave."""

    package: str
    version: str
    licence: str
    pairs: int
    """Translated messages before cleaning, plural forms counted singly."""


CATALOGUE_PACKAGES: Final = {
    "Django": ("django", "BSD-3-Clause"),
    "django-allauth": ("allauth", "MIT"),
    "jupyterlab-language-pack-de-DE": ("jupyterlab_language_pack_de_DE", "BSD-3-Clause"),
    "mercurial": ("mercurial", "GPL-2.0-or-later"),
    "wagtail": ("wagtail", "BSD-3-Clause"),
}
"""Package → its import folder and licence; those that are installed are read, and nothing of them is copied elsewhere."""


def read_installed(language: str) -> tuple[list[Pair], list[CatalogueUse]]:
    """Every message of an installed package with a finished translation into `language` (a code such as `de`), sorted by
    package and file.

    Raises ParallelTextError where no installed package has any.
    """
    pairs: list[Pair] = []
    used: list[CatalogueUse] = []
    for package, (folder, licence) in CATALOGUE_PACKAGES.items():
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        here = Path(str(found.locate_file(folder)))
        names = chosen_catalogues((str(path) for path in here.rglob("*.[mp]o")), language)
        messages = [pair for name in names for pair in _messages(name, Path(name).read_bytes())]
        if messages:
            pairs += messages
            used.append(CatalogueUse(package, found.version, licence, len(messages)))
    if not pairs:
        raise ParallelTextError(
            f"no installed package has catalogues from English to {language!r}; install the extra `text` "
            f"({', '.join(CATALOGUE_PACKAGES)}); or data.corpus is a folder with train.en and train.{language}, or with wheels"
        )
    return pairs, used


def wheels_in(folder: Path) -> list[Path]:
    """The wheels that lie in a folder, sorted by name."""
    return sorted(folder.glob("*.whl"))


def read_wheels(folder: Path, language: str) -> tuple[list[Pair], list[CatalogueUse]]:
    """Every message with a finished translation into `language` in the wheels of `folder`, sorted by wheel and file.

    Raises ParallelTextError for a wheel that cannot be read, and where none has any.
    """
    pairs: list[Pair] = []
    used: list[CatalogueUse] = []
    wheels = wheels_in(folder)
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as wheel:
                names = chosen_catalogues(wheel.namelist(), language)
                messages = [pair for name in names for pair in _messages(f"{path}/{name}", wheel.read(name))]
                if messages:
                    pairs += messages
                    used.append(_use_of(wheel, len(messages)))
        except (zipfile.BadZipFile, OSError) as error:
            raise ParallelTextError(f"{path} is not a readable wheel ({error}); download it again or take it away") from error
    if not pairs:
        raise ParallelTextError(f"none of the {len(wheels)} wheels in {folder} has a catalogue from English to {language!r}")
    return pairs, used


def _use_of(wheel: zipfile.ZipFile, pairs: int) -> CatalogueUse:
    name = next((name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")), None)
    if name is None:
        raise zipfile.BadZipFile("it has no METADATA")
    told = HeaderParser().parsestr(wheel.read(name).decode("utf-8"))
    classifiers = [each.rpartition(" :: ")[2] for each in told.get_all("Classifier", []) if each.startswith("License ::")]
    # The old field often holds a whole licence, or a pointer to one: the classifiers before it, then its first line.
    old = (told["License"] or "").strip().partition("\n")[0]
    licence = told["License-Expression"] or ", ".join(classifiers) or old or "not stated"
    return CatalogueUse(told["Name"], told["Version"], licence, pairs)


def chosen_catalogues(names: Iterable[str], language: str) -> list[str]:
    """The catalogues of a language among file names (`…/de/LC_MESSAGES/x.mo`, also `de_DE`), sorted; of a source (.po) and
    what was compiled from it (.mo) only the latter."""
    folders = {language, f"{language}_{language.upper()}"}
    paths = (PurePosixPath(name) for name in names if name.endswith((".mo", ".po")))
    found = {path for path in paths if path.parent.parent.name in folders}
    return sorted(str(path) for path in found if path.suffix == ".mo" or path.with_suffix(".mo") not in found)


class _Entry(Protocol):
    msgid: str
    msgstr: str
    msgid_plural: str
    msgstr_plural: dict[int, str]


def _messages(name: str, content: bytes) -> Iterator[Pair]:
    for entry in _entries(name, content):
        if not entry.msgid_plural:
            yield Pair(entry.msgid, entry.msgstr)
            continue
        forms = [form for _, form in sorted(entry.msgstr_plural.items())]
        yield Pair(entry.msgid, forms[0])
        # The last form is the one for many in every language of two forms, which German, Spanish and French are.
        yield Pair(entry.msgid_plural, forms[-1])


def _entries(name: str, content: bytes) -> Iterable[_Entry]:
    """Finished translations of one catalogue: what gettext itself would use."""
    try:
        if name.endswith(".mo"):
            return list(polib.mofile(content))
        return polib.pofile(content.decode("utf-8")).translated_entries()
    except (OSError, ValueError) as error:
        raise ParallelTextError(f"{name} is not a readable catalogue ({error}); get its package anew") from error
