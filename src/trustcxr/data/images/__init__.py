"""Read files as grey images: decoding, depth, DICOM, resizing."""
