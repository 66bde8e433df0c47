"""A reader study: radiologists mark the finding, then rank and rate heatmaps without knowing whose they are.

Two or three maps of one image (of two or three runs, or methods) stand in random order. All is kept in one SQLite file
in the study's folder; whose map is whose never leaves the server.
"""
