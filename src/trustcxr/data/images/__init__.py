"""One file becomes one grey image: decoding, depth, DICOM, squares."""
