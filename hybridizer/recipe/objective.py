"""The `objective` key of a training: what is minimised where that is not the loss of the next token alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import AllowInfNan, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from hybridizer.recipe.fields import Places, Positive, PositiveInt, Text

# As in recipe.models: built together with the root.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)
NEXT_TOKEN = "next-token"  # what a recipe may write for the default
Share = Annotated[float, Strict(), Gt(0), Le(1), AllowInfNan(False)]

_TEACHER = "a donor's name, or a folder, GGUF file, org/name@revision or pkg:package/file; the host if left out"


@dataclass(frozen=True, config=_CONFIG)
class Distill:
    """The student's next tokens are brought to a teacher's (arXiv 1503.02531)."""

    teacher: Text | None = Field(default=None, description=_TEACHER, examples=["instruct"])
    direction: Literal["forward", "reverse"] = Field(
        default="forward", description="forward: KL(teacher, student); reverse: KL(student, teacher)"
    )
    temperature: Positive = Field(
        default=1.0, description="both models' logits are divided by it, and the divergence is counted its square times"
    )
    weight: Share = Field(
        default=1.0, description="the share of the divergence; the rest is the loss of the next token"
    )
    top_k: PositiveInt | None = Field(
        default=None,
        description="the teacher runs alone before the training, and its so many most likely tokens are kept on disk: "
        "for a teacher that does not fit beside the student",
        examples=[64],
    )


@dataclass(frozen=True, config=_CONFIG)
class Align:
    """Hidden states of the student are brought to a teacher's at the layers that they correspond to."""

    teacher: Text | None = Field(default=None, description=_TEACHER, examples=["instruct"])
    at: Places = Field(
        default="boundary",
        description="which states: boundary, behind the last shallow layer; last, behind the last layer; or a list of "
        "layers of the output such as [3, 10..14], behind each",
    )
    loss: Literal["mse", "cosine"] = Field(
        default="mse",
        description="mse: the squared error as a share of the teacher's square, per token; cosine: 1 - the cosine",
    )
    weight: Share = Field(
        default=1.0,
        description="the share of the error; the rest is the loss of the next token, and at 1 no layer behind the last "
        "state runs",
    )


@dataclass(frozen=True, config=_CONFIG)
class Objective:
    """What a training minimises in place of the next token's loss: one of the two, each with a frozen teacher."""

    distill: Distill | None = Field(default=None, description="bring the next tokens to a teacher's")
    align: Align | None = Field(default=None, description="bring hidden states to a teacher's")

    @property
    def chosen(self) -> Distill | Align:
        """The one that is given."""
        found = self.distill or self.align
        assert found is not None, "checked when the recipe was loaded"
        return found

    @property
    def kind(self) -> Literal["distill", "align"]:
        """The key of the one that is given."""
        return "distill" if self.distill is not None else "align"


def expand_objectives(train: Any) -> None:
    """In the plain values of a `train` section: `objective: distill` is short for all its defaults, as with align.

    `next-token` is what a section without the key has. The objective of a training with stages is that of each stage
    that gives none: so a stage may have `next-token` where the others do not.
    """
    if not isinstance(train, dict):
        return
    stages = train.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict):
            if "objective" in train:
                stage.setdefault("objective", train["objective"])
            _expand(stage)
    if isinstance(stages, list):
        train.pop("objective", None)
    _expand(train)


def _expand(values: dict[str, Any]) -> None:
    if not isinstance(values.get("objective"), str):
        return
    if values["objective"] == NEXT_TOKEN:
        del values["objective"]
    elif values["objective"] in Objective.__dataclass_fields__:
        values["objective"] = {values["objective"]: {}}
