"""Commands for those who develop the package: style, documents, constraints."""
