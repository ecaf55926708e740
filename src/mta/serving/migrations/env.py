"""What Alembic runs to bring a store to this version's form; `database.open_database` hands it the connection."""

from alembic import context

from mta.serving.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
