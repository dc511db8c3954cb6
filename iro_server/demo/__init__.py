"""The demo: a frozen model aligned to the sentiment of film reviews, through the API, and judged."""

from iro_server.demo.run import DemoSize, run_demo

__all__ = ["DemoSize", "run_demo"]
