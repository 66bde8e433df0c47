"""The figures of the page: SVG, each with its values in words."""
