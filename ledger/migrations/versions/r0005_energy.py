"""What the machine drew, and how an attempt's part of it is known."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    for name, kind in (("input_seconds", sa.Float), ("energy_known", sa.String), ("internal_known", sa.String)):
        op.add_column("attempts", sa.Column(name, kind))
    op.create_table(
        "energy",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("ts", sa.Float, nullable=False, index=True),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("busy_s", sa.Float, nullable=False),
        sa.Column("joules", sa.Float),
        sa.Column("idle_s", sa.Float, nullable=False),
        sa.Column("idle_joules", sa.Float),
        sa.Column("known", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("power_valid", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )
