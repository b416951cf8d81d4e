"""What a task is and what it took: class, job, session; role, device time, energy, digests; who judged, and how."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    for name in ("job", "task_class", "session", "data_class"):
        op.add_column("requests", sa.Column(name, sa.String))
    op.add_column("requests", sa.Column("budget_usd", sa.Float))
    op.add_column("attempts", sa.Column("role", sa.String, nullable=False, server_default="answer"))
    for name in ("device_seconds", "energy_joules", "internal_usd"):
        op.add_column("attempts", sa.Column(name, sa.Float))
    for name in ("model_digest", "template_digest", "kernels_digest", "settings_digest"):
        op.add_column("attempts", sa.Column(name, sa.String))
    op.add_column("attempts", sa.Column("seed", sa.BigInteger().with_variant(sa.Integer, "sqlite")))
    op.add_column("outcomes", sa.Column("source", sa.String, nullable=False, server_default="check"))
    op.add_column("outcomes", sa.Column("comment", sa.String, nullable=False, server_default=""))
    op.add_column("outcomes", sa.Column("pending", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_outcomes_ts", "outcomes", ["ts"])
