from iro_server.cli.main import app

app()
