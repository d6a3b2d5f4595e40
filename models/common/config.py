"""The base class of all sections of a recipe, and sections that several families have."""

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of a recipe: keys that it does not declare are refused, and it does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PictureSize(Section):
    """Picture that the planner counts for, in pixels; training takes the sizes of the shards. Sides are multiples
    of ``multiple``; ``key`` is the section's name, for errors."""

    multiple: ClassVar[int]
    key: ClassVar[str]
    height: int = Field(gt=0)
    width: int = Field(gt=0)

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        for name in ("height", "width"):
            if getattr(self, name) % self.multiple:
                raise ValueError(f"{self.key}.{name} is {getattr(self, name)}, expected a multiple of {self.multiple}")
        return self
