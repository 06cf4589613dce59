"""What pyright needs to know of chex: it does not see through `@chex.dataclass(frozen=True)` by itself."""

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")

@overload
@dataclass_transform()
def dataclass(cls: type[_T], /) -> type[_T]: ...
@overload
@dataclass_transform()
def dataclass(
    *, frozen: bool = ..., kw_only: bool = ..., mappable_dataclass: bool = ...
) -> Callable[[type[_T]], type[_T]]: ...
def __getattr__(name: str) -> Any: ...
