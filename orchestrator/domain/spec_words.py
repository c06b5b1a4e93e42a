"""The words specs and jobs are written with: paths, findings, and the types of names, addresses, quantities and texts.

What a pattern demands is said beside it by a `Form`; error messages and the README show that instead of the pattern.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SpecPath = tuple[str | int, ...]
"""Keys and list indices from the top of a spec to a value: ("nodes", 2, "mac")."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a spec whose fields are each right by themselves."""

    path: SpecPath
    """The value to look at."""
    message: str
    """What is wrong, and by how much."""
    hint: str
    """The way out."""
    other: SpecPath | None = None
    """The second place of a finding about two places; shown by its line at the end of the message."""
    rests_on: tuple[SpecPath, ...] = ()
    """Further values the finding reckons with; "*" stands for any one key or index. A wrong one voids the finding."""


@dataclass(frozen=True, slots=True)
class Form:
    """Says in words what the pattern beside it in an annotation demands; errors show it instead of the pattern."""

    text: str


NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9._-]{0,62}$"
NAME_FORM = "a letter, then at most 62 letters, digits, points, hyphens or underscores"
Name = Annotated[str, Field(pattern=NAME_PATTERN), Form(NAME_FORM)]
Address = Annotated[str, Form("an IPv4 or IPv6 address in its canonical form, such as 10.1.2.3 or fd00::1")]
Subnet = Annotated[str, Form("a network in CIDR form, such as 10.1.0.0/16")]
Port = Annotated[int, Field(ge=1, le=65535)]
Watts = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Label = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Form("text on one line, without control characters"),
]
Serial = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]*$"), Form("ASCII without spaces, as on the machine's plate")
]
Version = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]*$"), Form("the version as the BMC prints it, in ASCII")
]
ComponentId = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]*$"),
    Form("the Id that the BMC's FirmwareInventory gives, in ASCII"),
]
Folder = Annotated[
    str,
    Field(max_length=255, pattern=r"^(/[A-Za-z0-9._+-]+)+$"),
    Form("an absolute path of letters, digits, points, plus signs, hyphens and underscores"),
]


class Strict(BaseModel):
    """A frozen value that refuses what it does not know and never guesses a type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Kilograms = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Metres = Annotated[float, Field(ge=-1e5, le=1e5, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
