"""Matches name the settings they were found with besides the bank: the column is called after what it holds."""

from alembic import op

revision = "found_by"
down_revision = "first"


def upgrade() -> None:
    """Rename the column; a match that only names its bank is found anew when it is next asked for."""
    op.execute("ALTER TABLE matches RENAME COLUMN bank TO found_by")
