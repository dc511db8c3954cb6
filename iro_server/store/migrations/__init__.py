"""The tables' history: `versions/`, one file a change, run by alembic (`store/upgrade.py`)."""
