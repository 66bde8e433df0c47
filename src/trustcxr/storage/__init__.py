"""Write and read what is on disk: whole files, typed documents, folders."""
