"""The first form of the tables."""

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _owner(column: str, owner: str, table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [owner], name=f"fk_{table}_{column}", ondelete="CASCADE")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "tenants",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant_id", NUMBER, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("label", sa.String(256), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
        _owner("tenant_id", "tenants.id", "api_keys"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])
    op.create_table(
        "users",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant_id", NUMBER, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_users_tenant_id_name"),
        _owner("tenant_id", "tenants.id", "users"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "history_items",
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("item_id", sa.String(256), nullable=False),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.Column("time", sa.String(256)),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "position", name="pk_history_items"),
        sa.UniqueConstraint("user_id", "item_id", name="uq_history_items_user_id_item_id"),
        _owner("user_id", "users.id", "history_items"),
    )
    op.create_table(
        "matches",
        sa.Column("user_id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("bank", sa.String(64), nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("anchors", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_matches"),
        _owner("user_id", "users.id", "matches"),
    )
    op.create_table(
        "record_schemas",
        sa.Column("identity", sa.LargeBinary(16), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("identity", name="pk_record_schemas"),
    )
    op.create_table(
        "adapters",
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("schema_identity", sa.LargeBinary(16), nullable=False),
        sa.Column("bank", sa.String(64), nullable=False),
        sa.Column("anchors", sa.JSON, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("note", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "revision", name="pk_adapters"),
        _owner("user_id", "users.id", "adapters"),
        sa.ForeignKeyConstraint(["schema_identity"], ["record_schemas.identity"], name="fk_adapters_schema_identity"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant_id", NUMBER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("finished", sa.Float),
        sa.Column("message", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        _owner("tenant_id", "tenants.id", "jobs"),
    )
    op.create_index("ix_jobs_state_created", "jobs", ["state", "created"])
    op.create_table(
        "job_users",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "user_id", name="pk_job_users"),
        _owner("job_id", "jobs.id", "job_users"),
        _owner("user_id", "users.id", "job_users"),
    )
    op.create_index("ix_job_users_user_id", "job_users", ["user_id"])
