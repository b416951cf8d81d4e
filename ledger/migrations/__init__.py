"""How an older ledger becomes today's: one numbered step a file, each applied once, by Alembic."""
