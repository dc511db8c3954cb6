"""What must outlive the server: tables in a database, and files beside it."""
