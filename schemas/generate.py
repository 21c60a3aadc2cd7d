"""Write the JSON Schemas of what people and other programs read: `python -m schemas.generate`."""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.config import HostConfig
from schemas.datafile import DataFile

SCHEMA_DIR = Path(__file__).parent / "json"
PUBLISHED: dict[str, type[BaseModel]] = {
    "datafile.schema.json": DataFile,
    "host.schema.json": HostConfig,
}


def schema_text(model: type[BaseModel]) -> str:
    """The model's JSON Schema (2020-12), in the very bytes that are committed."""
    schema = model.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def main() -> None:
    for name, model in PUBLISHED.items():
        (SCHEMA_DIR / name).write_text(schema_text(model))


if __name__ == "__main__":
    main()
