"""The demo: a frozen model aligned to the sentiment of film reviews, through the API, and judged."""


class MissingPackage(RuntimeError):
    """A package that carries data or weights is not installed; the message says what to install."""


class DemoError(RuntimeError):
    """The demo's server or its job failed."""
