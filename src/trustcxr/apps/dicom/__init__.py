"""Find images in study folders, and write answers as DICOM objects. Writing needs the extra `dicom`."""
