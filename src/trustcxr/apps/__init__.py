"""Serve images, run reader studies, read and write DICOM studies."""
