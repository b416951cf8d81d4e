"""Virtual keys, budgets, and what is reserved of them."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

Nano = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("prefix", sa.String, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_ts", sa.Float, nullable=False),
        sa.Column("revoked_ts", sa.Float),
    )
    op.create_table(
        "budgets",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("limit_nanousd", Nano, nullable=False),
    )
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.String, primary_key=True),
        sa.Column("start_ts", Nano, primary_key=True),
        sa.Column("held_nanousd", Nano, nullable=False),
        sa.Column("spent_nanousd", Nano, nullable=False),
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False, index=True),
        sa.Column("ts", sa.Float, nullable=False),
        sa.Column("expires_ts", sa.Float, nullable=False),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("amount_nanousd", Nano, nullable=False),
        sa.Column("settled_nanousd", Nano),
        sa.Column("windows", sa.JSON, nullable=False),
    )
