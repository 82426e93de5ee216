"""`kdtune schema`: the experiment file's JSON Schema, for editors."""

import typer


def schema() -> None:
    """Print the JSON Schema of experiment files.

    With the YAML language server: save it and add `# yaml-language-server: $schema=kdtune.schema.json` to a file.
    """
    from kdtune.experiment import json_schema

    typer.echo(json_schema())
