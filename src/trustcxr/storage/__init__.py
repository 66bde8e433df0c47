"""What is written to disk: files whole or not at all; folders that say what they are."""
