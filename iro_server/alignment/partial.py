"""Requests that set some of the definition's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model

from iro_server.alignment.definition import SERVER_LIMITS

Model = TypeVar("Model", bound=BaseModel)


def with_fields_of(
    definition: type[BaseModel], names: Mapping[str, str], auto: bool = False
) -> Callable[[type[Model]], type[Model]]:
    """A class decorator: adds fields of ``definition``, each optional and within the limits of a server.

    ``names``: the field of ``definition`` by its name in the class. ``auto``: "auto" is accepted, too, and means the
    default.
    """

    def add(model: type[Model]) -> type[Model]:
        fields = {name: _optional(definition, source, auto) for name, source in names.items()}
        return create_model(  # type: ignore[call-overload, no-any-return]
            model.__name__, __base__=model, __doc__=model.__doc__, __module__=model.__module__, **fields
        )

    return add


def _optional(definition: type[BaseModel], name: str, auto: bool) -> tuple[Any, Any]:
    """The annotation and the default of ``definition``'s field ``name`` in a request."""
    field = definition.model_fields[name]
    members = [member for member in _members(field.annotation) if member is not NoneType]
    if name in SERVER_LIMITS:
        members = [_at_most(member, SERVER_LIMITS[name]) for member in members]
    if field.metadata:  # constraints of the field are its only member's
        (member,) = members
        members = [Annotated[member, *field.metadata]]
    extra = (Literal["auto"], None) if auto else (None,)
    return Union[(*members, *extra)], Field(None, description=field.description)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _at_most(member: Any, limit: int) -> Any:
    """``member`` of a field's type with ``limit`` on it, if it is a number."""
    is_number = member in (int, float) or get_origin(member) is Annotated
    return Annotated[member, Field(le=limit)] if is_number else member
