"""The JSON Schema of recipes, for editors: it accepts every recipe that loads, and some that loading refuses."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from hybridizer.recipe.models import AUTO, Recipe
from hybridizer.recipe.trial import NO_TRIAL

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) with titles, descriptions, defaults, choices and patterns."""
    schema = TypeAdapter(Recipe).json_schema(schema_generator=_Generator)
    donors = schema["properties"]["donors"]
    ((pattern, donor),) = donors["patternProperties"].items()
    source = schema["$defs"]["DonorEntry"]["properties"]["source"]
    donors["patternProperties"] = {pattern: {"anyOf": [source, donor]}}
    donors["additionalProperties"] = False
    for key, word in (("layout", AUTO), ("trial", NO_TRIAL)):
        section = schema["properties"][key]
        about = {name: section.pop(name) for name in ("title", "description") if name in section}
        schema["properties"][key] = {**about, "anyOf": [{"const": word}, section]}
    return {"$schema": DIALECT} | schema


class _Generator(GenerateJsonSchema):
    """An optional key may not be null: None in a section means that the key was left out."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().default_schema(schema)
        return {key: value for key, value in inner.items() if key != "default" or value not in (None, "", [])}

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().dataclass_schema(schema)
        # What fields.NotAKey gives.
        found["properties"] = {key: value for key, value in found["properties"].items() if "not" not in value}
        return found
