"""TOML only; package data."""
