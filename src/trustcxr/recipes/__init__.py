"""What a study and a run are, read from YAML: a mapping becomes a recipe, or one line names the wrong key."""
