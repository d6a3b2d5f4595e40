"""The base class of all sections of a recipe, and sections that several families have."""

from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stagecoach.data.paths import expand_path

PathText = Annotated[str, AfterValidator(expand_path)]
"""A path or URL, in which ``~`` and ``$NAME`` are filled in."""


class Section(BaseModel):
    """A section of a recipe: keys that it does not declare and numbers that are not finite are refused, and it does
    not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


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
