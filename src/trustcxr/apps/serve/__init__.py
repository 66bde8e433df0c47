"""Serve a page and an HTTP API that classify one image. No image is stored."""
