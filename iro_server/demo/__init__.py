"""The demo: a frozen model aligned to the sentiment of film reviews, through the API, and judged."""
