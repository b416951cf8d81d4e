"""The ledger as it was before it had versions: requests, attempts, outcomes, egress."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

Count = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("ts", sa.Float, nullable=False, index=True),
        sa.Column("protocol", sa.String, nullable=False),
        sa.Column("model_asked", sa.String, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("decision", sa.JSON, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("finished_ts", sa.Float),
        sa.Column("key_id", sa.String),
        sa.Column("error_code", sa.String),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False, index=True),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("backend", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("started_ts", sa.Float, nullable=False),
        sa.Column("first_token_s", sa.Float),
        sa.Column("duration_s", sa.Float),
        sa.Column("prompt_tokens", Count, nullable=False),
        sa.Column("completion_tokens", Count, nullable=False),
        sa.Column("cached_tokens", Count, nullable=False),
        sa.Column("finish_reason", sa.String),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("retail_usd", sa.Float),
        sa.Column("error", sa.String),
    )
    op.create_table(
        "outcomes",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("attempt_id", sa.String, nullable=False),
        sa.Column("check", sa.String, nullable=False),
        sa.Column("passed", sa.Boolean),
        sa.Column("score", sa.Float),
        sa.Column("evidence", sa.String, nullable=False),
        sa.Column("ts", sa.Float, nullable=False),
    )
    op.create_index("outcomes_request", "outcomes", ["request_id"])
    op.create_table(
        "egress",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("ts", sa.Float, nullable=False, index=True),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("request_id", sa.String, index=True),
        sa.Column("allowed", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )
