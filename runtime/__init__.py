"""Serves open-weight models on local accelerators."""
