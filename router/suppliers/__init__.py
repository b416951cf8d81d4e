"""Suppliers as data (TOML) and what keeps calls to them sane. No vendor's name in Python."""
