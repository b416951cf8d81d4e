"""What an answer is replayed with, the prompt's tokens that were written to a supplier's cache, and texts that are kept."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"

Count = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("attempts", sa.Column("tokens_digest", sa.String))
    op.add_column("attempts", sa.Column("cache_write_tokens", Count, nullable=False, server_default="0"))
    op.create_table(
        "texts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False, index=True),
        sa.Column("ts", sa.Float, nullable=False, index=True),
        sa.Column("asked", sa.JSON(none_as_null=True)),
        sa.Column("answers", sa.JSON(none_as_null=True)),
    )
