"""Images out of a study folder, answers back as DICOM objects: to a folder, or to the node that sent the image.

pydicom alone reads; highdicom, pynetdicom are imported where they are used (extra `dicom`).
"""
