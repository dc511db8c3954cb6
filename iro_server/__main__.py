from iro_server.cli import app

app()
