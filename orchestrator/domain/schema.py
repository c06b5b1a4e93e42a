"""Walking a pydantic model's annotations: what stands at a path, and what is said about it.

Errors about a file and the README of its fields both ask these questions.
"""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.domain.spec import SpecPath


def annotation_at(model: type[BaseModel], path: SpecPath) -> Any:
    """The annotation of the value at `path` below `model`; None where the schema has no such place."""
    annotation: Any = model
    for part in path:
        annotation = _step(annotation, part)
    return annotation


def model_at(model: type[BaseModel], path: SpecPath) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`; None where that is no model."""
    kind = unwrap(annotation_at(model, path))[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def field_at(model: type[BaseModel], path: SpecPath) -> FieldInfo | None:
    """The field at `path`; None for items of lists and mappings, and where the schema has no such place."""
    around = model_at(model, path[:-1]) if path else None
    return around.model_fields.get(str(path[-1])) if around is not None else None


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The bare type under `Annotated` and `| None`, and the metadata met on the way."""
    metadata: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata = (*metadata, *more)
        elif is_optional(annotation):
            annotation = next(item for item in get_args(annotation) if item is not type(None))
        else:
            return annotation, metadata


def is_optional(annotation: Any) -> bool:
    """Whether `annotation` is a type `| None`."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _step(annotation: Any, part: str | int) -> Any:
    """The annotation one key or index further in; None where there is none."""
    kind = unwrap(annotation)[0]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field is not None else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments and isinstance(part, int) else None
