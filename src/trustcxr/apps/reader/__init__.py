"""Run a blinded reader study: radiologists mark the finding, then rank and rate two or three heatmaps of each image.

The maps have random order. One SQLite file in the study's folder holds everything; the names of the models stay there.
"""
